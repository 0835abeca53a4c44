#!/usr/bin/env bash
# One CPU core, about 15 minutes: MAGVIT's stem against patchified ones with the same tokens of 2 x 8 x 8 pixels, small, at equal
# steps and at no more CPU time.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/stems data=$run/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

python examples/make_digits.py $data --task motion --train 640 --validation 80 --test 0

train() {  # name, steps, the config's fields that make the stem
    [ -f $run/$1/eval_results.json ] || python scripts/train_tokenizer.py --dataset_name $data --output_dir $run/$1 \
        --config_overrides "{\"image_size\": 64, \"pixel_mean\": 0.16, \"pixel_std\": 0.1, \"base_channels\": 16,
            \"num_res_blocks\": 1, \"unmasked_clip_ratio\": 1.0, $3}" \
        --max_steps $2 --per_device_train_batch_size 2 --learning_rate 1e-3 --adam_beta1 0.9 --warmup_steps 0.1 \
        --perceptual_weight 0 --max_eval_samples 40 --logging_steps 50 --save_steps 100 --save_total_limit 1 --report_to none --use_cpu
}
patched='"stem_patch_size": [2, 4, 4], "channel_multipliers": [2, 4], "temporal_downsample": [false]'
time train patched_300 300 "$patched"
time train frames_apart_300 300 '"stem_patch_size": [1, 4, 4], "channel_multipliers": [2, 4], "temporal_downsample": [true]'
time train magvit_300 300 '"stem_patch_size": [1, 1, 1], "channel_multipliers": [1, 2, 2, 4], "temporal_downsample": [true, false, false]'
time train patched_1500 1500 "$patched"
