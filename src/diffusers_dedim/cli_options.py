"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="Folder or Hub id of a pipeline.", show_default="the bundled one"),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="E.g. cpu or cuda.", show_default="cuda where there is one")
]
