#!/usr/bin/env bash
# Train both guides and the denoiser on one GPU within a time budget: first both guides side by side, then the denoiser.
#
#   scripts/train_on_gpu.sh --data FACES --teacher NAME=FILE.onnx [--teacher NAME=FILE.onnx ...] --out DIR
#                           [--guide-minutes 10] [--unet-minutes 15] [--batch-size 256] [--workers 4] [--from WEIGHTS]
#
# FACES are aligned crops as in docs/training.md. Run again with the same --out it goes on: what is trained for its time
# already is left alone. The models, in files of at most 14 MB, are in DIR/weights; logs are in DIR/*.log.
# --from starts from an earlier pipeline folder (its unet). On a CPU: --batch-size 8 --workers 0, and patience.
set -euo pipefail

data="" out="" from="" guide_minutes=10 unet_minutes=15 batch_size=256 workers=4 teachers=()
while (($#)); do
  case "$1" in
    --data) data=$2 ;;
    --teacher) teachers+=("$2") ;;
    --out) out=$2 ;;
    --guide-minutes) guide_minutes=$2 ;;
    --unet-minutes) unet_minutes=$2 ;;
    --batch-size) batch_size=$2 ;;
    --workers) workers=$2 ;;
    --from) from=$2 ;;
    *) echo "train_on_gpu: unknown option $1; see the head of $0" >&2; exit 2 ;;
  esac
  shift 2
done
[[ -n $data && -n $out ]] || { echo "train_on_gpu: --data and --out are needed; see the head of $0" >&2; exit 2; }
mkdir -p "$out/weights"

train() { # NAME MINUTES KIND OPTIONS...: a run of `dedim train KIND`, gone on with where it was begun
  local name=$1 minutes=$2 kind=$3 resume=()
  shift 3
  [[ -d $out/$name/checkpoint ]] && resume=(--resume)
  dedim train "$kind" --data "$data" -o "$out/$name" --minutes "$minutes" --batch-size "$batch_size" \
    --num-workers "$workers" --validate-minutes 2 --checkpoint-minutes 1 --max-shard-size 14MB \
    "${resume[@]}" "$@" >>"$out/$name.log" 2>&1
  rm -rf "$out/weights/$name"
  cp -r "$out/$name/model" "$out/weights/$name"
}

guides=()
for teacher in "${teachers[@]}"; do
  train "guide-${teacher%%=*}" "$guide_minutes" encoder --method blockwise --teacher "${teacher#*=}" \
    --blocks-share 0.2 --final-augmentation 0.1 --learning-rate 4e-3 --weight-decay 1e-5 --grad-clip 10 &
  guides+=($!)
done
for guide in "${guides[@]}"; do wait "$guide"; done
if [[ $unet_minutes != 0 ]]; then
  start=()
  [[ -n $from ]] && start=(--initial-weights "$from/unet")
  train unet "$unet_minutes" unet --crop-size 112 "${start[@]}"
fi
find "$out/weights" -name '*.safetensors' -size +14M -print | while read -r file; do
  echo "train_on_gpu: $file is larger than 14 MB" >&2
done
echo "train_on_gpu: the models are in $out/weights"
