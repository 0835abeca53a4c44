#!/usr/bin/env bash
# Two CPU cores, under 30 minutes: the adversarial recipe on generated digits clips, to see that it is stable. No perceptual term, for
# which there is no image model without a download. Curves of every part of the loss: runs/tokenizer_demo_gan/tokenizer/losses.png
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/tokenizer_demo_gan data=runs/tokenizer_demo_gan/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

python scripts/make_digits.py $data --task motion --train 640 --validation 80 --test 160

python scripts/train_tokenizer.py \
    --dataset_name $data --output_dir $run/tokenizer --model_size tiny --perceptual_weight 0 \
    --config_overrides '{"image_size": 64, "stem_patch_size": [2, 4, 4], "pixel_mean": 0.0, "pixel_std": 1.0, "unmasked_clip_ratio": 0.25}' \
    --adversarial_weight 0.02 --adversarial_start_step 300 --discriminator_channels 8 --discriminator_multipliers 2 4 4 \
    --discriminator_learning_rate 1e-3 --lecam_weight 0.001 --ema_decay 0.98 \
    --max_steps 600 --per_device_train_batch_size 4 --learning_rate 2e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
    --warmup_steps 0.05 --logging_steps 10 --eval_strategy steps --eval_steps 100 --max_eval_samples 40 \
    --save_steps 100 --save_total_limit 1 --report_to none
