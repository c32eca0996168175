"""``dedim publish`` and ``dedim publish-space``; `diffusers_dedim.cli` registers them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from diffusers_dedim.cli.common import plain_errors
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.hub.kinds import KINDS, Model

if TYPE_CHECKING:
    from diffusers_dedim.hub.upload import Plan, Target


_STOPPED = "Stopped. What has arrived is kept; run the same command again to go on."
RepoArgument = Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hugging Face Hub.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="List what would be uploaded, and stop. Nothing is created.")
]


def publish(
    repo_id: RepoArgument,
    model: Annotated[Model, typer.Option("--model", help="What to publish.")],
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of a saved pipeline.", show_default="the bundled one")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Model card; needed with --weights.", show_default="model_cards/MODEL.md"),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name the result, e.g. v1.0, for revision=.")
    ] = None,
) -> None:
    """Publish the pipeline, or one of its networks, on the Hugging Face Hub.

    Uploads what differs from the repository, and nothing else. Needs a token: `hf auth login`, or HF_TOKEN.
    """
    with plain_errors(_STOPPED), TemporaryDirectory(prefix="dedim-publish-") as temporary:
        from diffusers_dedim.hub.upload import Target, check_repo_id, check_settings, check_tag

        check_repo_id(repo_id)
        if tag is not None:
            check_tag(tag)
        check_settings(need_token=not dry_run)  # now: the weights take a while to prepare
        from diffusers_dedim.hub.staging import stage_model

        folder = Path(temporary)
        stage_model(model, repo_id, folder, weights=weights, card=card)
        _publish(Target(repo_id, KINDS[model], private), folder, dry_run, tag)


def publish_space(
    repo_id: RepoArgument,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
    folder: Annotated[
        Path | None, typer.Option(help="Folder with app.py.", show_default="spaces/ of this package")
    ] = None,
    wheel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Wheel of this package that the Space installs.", show_default="PyPI's"
        ),
    ] = None,
) -> None:
    """Publish the demo as a Space on the Hugging Face Hub."""
    with plain_errors(_STOPPED), TemporaryDirectory(prefix="dedim-publish-") as temporary:
        from diffusers_dedim.hub.cards import space_sdk
        from diffusers_dedim.hub.staging import stage_space
        from diffusers_dedim.hub.upload import Target, check_repo_id, check_settings

        check_repo_id(repo_id)
        if wheel is not None and private:
            raise DeDiMError(
                "--wheel: the Space fetches it by its address while it is built, and a private one does not show it; "
                "leave --private out, or --wheel."
            )
        check_settings(need_token=not dry_run)
        staged = Path(temporary)
        for note in stage_space(repo_id, staged, folder, wheel=wheel):
            typer.echo(f"Note: {note}")
        _publish(Target(repo_id, None, private, space_sdk(staged)), staged, dry_run)


def _publish(target: Target, folder: Path, dry_run: bool, tag: str | None = None) -> None:
    from huggingface_hub import constants

    from diffusers_dedim.hub.upload import add_tag, make_plan, refuse_taken_tag, upload_files

    plan = make_plan(target, folder)
    if tag is not None and plan.exists:
        refuse_taken_tag(target, tag)
    _show(plan)
    url = f"{constants.ENDPOINT}/{'' if target.kind else 'spaces/'}{target.repo_id}"
    if dry_run:
        typer.echo("Dry run: nothing was created or uploaded.")
        return
    if plan.upload:
        for note in upload_files(plan):
            typer.echo(f"Note: {note}")
    if tag is not None:
        add_tag(target, tag)
        typer.echo(f"Tagged: {tag}")
    typer.echo(f"{'Published' if plan.upload else 'Up to date'}: {url}")


def _show(plan: Plan) -> None:
    state = "" if plan.exists else ", to be created"
    typer.echo(f"{plan.target.repo_id} ({plan.target.repo_type}{state}):")
    for word, paths in (("new", plan.new), ("changed", plan.changed), ("unchanged", plan.same)):
        for path in paths:
            typer.echo(f"  {word:9} {path}")
    for path in plan.other:
        typer.echo(f"  {'left':9} {path} (only in the repository)")
    typer.echo(f"{len(plan.upload)} files to upload, {plan.size / 1e6:.1f} MB.")
