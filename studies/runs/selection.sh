#!/usr/bin/env bash
# Two CPU cores, about 30 minutes beside other work: does the learned choice of tokens earn its place? Needs the quick start's clips.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/selection data=runs/quickstart/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

python examples/make_digits.py $data --task motion --train 640 --validation 80 --test 160

# One autoencoder that has seen masks of several kinds, any budget, and none.
[ -f $run/base/eval_results.json ] || python scripts/train_tokenizer.py \
    --dataset_name $data --output_dir $run/base --selection learned random motion \
    --config_overrides '{"image_size": 32, "base_channels": 32, "num_res_blocks": 1, "channel_multipliers": [1, 2],
        "temporal_downsample": [true], "stem_patch_size": [2, 2, 2], "norm_num_groups": 8, "pixel_mean": 0.16, "pixel_std": 0.1,
        "min_keep_ratio": 0.05, "keep_ratio": 0.5, "unmasked_clip_ratio": 0.25}' \
    --max_steps 1000 --per_device_train_batch_size 4 --learning_rate 3e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
    --perceptual_weight 0 --logging_steps 50 --save_strategy no --report_to none

# Two processes, each with half of the choices; the last call has nothing left to train and writes the tables.
forks="python studies/evaluate_tokenizer.py $run/base $data $run/forks --fork_steps 200 --seeds 3 --max_samples 80"
$forks --selections learned random motion &
$forks --selections everest flow uniform
wait
$forks
