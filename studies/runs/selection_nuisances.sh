#!/usr/bin/env bash
# One CPU core, about 15 minutes a nuisance: where does a learned choice of tokens know more than a pixel difference? Generated digits
# clips with noise in a part of the picture, with flicker, with a trembling camera; the noise with three tokenizers.
#     bash studies/runs/selection_nuisances.sh [NUISANCE [SEED OF THE TOKENIZER]]
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/selection_nuisances
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
clips="--task motion --train 400 --validation 40 --test 80"

compare() {  # nuisance, seed of the tokenizer, where to look for what moves
    python examples/make_digits.py $run/$1/data --nuisance $1 $clips
    [ -f $run/$1/base_$2/eval_results.json ] || python scripts/train_tokenizer.py \
        --dataset_name $run/$1/data --output_dir $run/$1/base_$2 --seed $2 --selection learned random motion \
        --config_overrides '{"image_size": 64, "base_channels": 16, "num_res_blocks": 1, "channel_multipliers": [1, 2],
            "temporal_downsample": [false], "stem_patch_size": [2, 4, 4], "norm_num_groups": 4, "pixel_mean": 0.2, "pixel_std": 0.12,
            "min_keep_ratio": 0.05, "keep_ratio": 0.5, "unmasked_clip_ratio": 0.25}' \
        --max_steps 2400 --per_device_train_batch_size 2 --learning_rate 2e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
        --warmup_steps 0.05 --perceptual_weight 0 --logging_steps 100 --save_strategy no --report_to none --use_cpu
    python studies/evaluate_tokenizer.py $run/$1/base_$2 $run/$1/data $run/$1/forks_$2 --fork_steps 200 --seeds 3 \
        --batch_size 2 --learning_rate 5e-4 --max_samples 40 --moving_in $3
}

if [ $# -gt 0 ]; then runs="$1:${2:-0}"; else runs="grain:0 flicker:0 camera:0 grain:1 grain:2"; fi
python examples/make_digits.py $run/clean $clips
for pair in $runs; do
    nuisance=${pair%:*}
    # A trembling camera moves all of the picture, so that the clips themselves say what moves.
    [ $nuisance = camera ] && still=$run/camera/data || still=$run/clean
    compare $nuisance ${pair#*:} $still
done
