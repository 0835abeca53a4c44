#!/usr/bin/env bash
# One command for a machine with a GPU, ten minutes at most, no network: tests marked gpu, then times and memory beside VideoMAE and V-JEPA 2.
#   bash benchmarks/gpu.sh        more options: benchmarks/gpu.py --help; PYTHON=... chooses the interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"  # one device: Trainer would spread a batch over all
PYTHON="${PYTHON:-python}"
"$PYTHON" -c '
import importlib.util, sys
wanted = "torch torchvision transformers accelerate datasets einops av torchmetrics".split()
missing = [name for name in wanted if importlib.util.find_spec(name) is None]
if missing:
    said = ", ".join(missing)
    sys.exit(f"error: Got Python without {said}, expected the packages of pyproject.toml: run pip install --editable .[dev] where there is a "
             "network, or set PYTHON to another interpreter.")
'
exec "$PYTHON" benchmarks/gpu.py "$@"
