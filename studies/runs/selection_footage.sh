#!/usr/bin/env bash
# One CPU core, about 15 minutes: the choices of tokens compared on real footage. VIDEOS are the films to cut (see model_cards/selection.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/selection_footage data=$run/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

[ -d $data ] || python studies/cut_videos.py $data "$@" --size 64 --num_frames 16 --test_every 3

[ -f $run/base/eval_results.json ] || python scripts/train_tokenizer.py \
    --dataset_name $data --output_dir $run/base --selection learned random motion --eval_split test \
    --config_overrides '{"image_size": 64, "base_channels": 16, "num_res_blocks": 1, "channel_multipliers": [1, 2],
        "temporal_downsample": [false], "stem_patch_size": [2, 4, 4], "norm_num_groups": 4, "pixel_mean": 0.39, "pixel_std": 0.21,
        "min_keep_ratio": 0.05, "keep_ratio": 0.5, "unmasked_clip_ratio": 0.25}' --min_crop_scale 0.4 --horizontal_flip true \
    --max_steps 2400 --per_device_train_batch_size 2 --learning_rate 2e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
    --topk_sigma_end 0.01 --warmup_steps 0.05 --perceptual_weight 0 --logging_steps 100 --save_steps 300 --save_total_limit 1 \
    --report_to none --use_cpu

python studies/evaluate_tokenizer.py $run/base $data $run/forks --fork_steps 200 --seeds 3 --batch_size 2 --learning_rate 5e-4 \
    --min_crop_scale 0.4
