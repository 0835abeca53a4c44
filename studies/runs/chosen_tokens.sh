#!/usr/bin/env bash
# About three hours of one CPU core: classifiers on a share of the tokens, for model_cards/chosen_tokens.md.
# What is done is not done again; delete runs/chosen_tokens to start anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/chosen_tokens
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

python examples/make_digits.py $run/motion --task motion --train 640 --validation 80 --test 160
python examples/make_digits.py $run/long --task flash --num_frames 512 --event_length 1 --image_size 32 \
    --train 1200 --validation 0 --test 360

[ -f $run/tokenizer/eval_results.json ] || python scripts/train_tokenizer.py \
    --dataset_name $run/motion --output_dir $run/tokenizer \
    --config_overrides '{"image_size": 32, "base_channels": 32, "num_res_blocks": 1, "channel_multipliers": [1, 2],
        "temporal_downsample": [true], "stem_patch_size": [2, 2, 2], "norm_num_groups": 8, "pixel_mean": 0.16, "pixel_std": 0.1,
        "unmasked_clip_ratio": 0.25}' \
    --max_steps 600 --per_device_train_batch_size 4 --learning_rate 3e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
    --perceptual_weight 0 --logging_steps 50 --save_steps 200 --save_total_limit 1 --report_to none

python studies/chosen_tokens.py $run/motion $run/motion-results --tokenizer $run/tokenizer --keep_ratios 0.0625 0.125
python studies/chosen_tokens.py $run/motion $run/motion-results --tokenizer $run/tokenizer \
    --keep_ratios 0.25 1 --selections learned random --seeds 3
python studies/chosen_tokens.py $run/long $run/long-results --tokenizer $run/tokenizer \
    --num_frames 512 --keep_ratios 0.015625 --steps 4000 --selections motion --seeds 1
