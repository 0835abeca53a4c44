#!/usr/bin/env bash
# One CPU core, about 10 minutes: the adversarial recipe on generated digits clips, and the same run without the adversarial term, to
# see that it is stable and what it costs. No perceptual term, for which there is no image model without a download. Curves of every
# part of the loss: runs/tokenizer_demo_gan/{adversarial,plain}/losses.png
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/tokenizer_demo_gan data=runs/tokenizer_demo_gan/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

python examples/make_digits.py $data --task motion --train 640 --validation 80 --test 160

train() {  # name, options of the adversarial term
    [ -f $run/$1/eval_results.json ] || python scripts/train_tokenizer.py \
        --dataset_name $data --output_dir $run/$1 --perceptual_weight 0 "${@:2}" \
        --config_overrides '{"image_size": 64, "base_channels": 16, "channel_multipliers": [1, 2], "num_res_blocks": 1, "norm_num_groups": 4,
            "pixel_mean": 0.16, "pixel_std": 0.1, "unmasked_clip_ratio": 0.5}' \
        --max_steps 1200 --per_device_train_batch_size 2 --learning_rate 2e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
        --warmup_steps 0.05 --ema_decay 0.99 --logging_steps 20 --eval_strategy steps --eval_steps 400 --max_eval_samples 20 \
        --save_steps 200 --save_total_limit 1 --report_to none --use_cpu
}
train plain
train adversarial --adversarial_weight 0.02 --adversarial_start_step 800 --discriminator_channels 8 \
    --discriminator_multipliers 2 4 4 --discriminator_learning_rate 3e-4
