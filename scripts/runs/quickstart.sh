#!/usr/bin/env bash
# 24 minutes of processor time, on two CPU cores: every stage on generated digits clips of 128 frames, from nothing to a classified .mp4.
# A stage that is done is not done again; delete runs/quickstart to start anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/quickstart data=runs/quickstart/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

python examples/make_digits.py $data --task motion --image_size 32 --train 640 --validation 80 --test 160

# All three models cut a clip into 32 x 8 x 8 tokens of 4 x 4 x 4 pixels.
[ -f $run/tokenizer/eval_results.json ] || python scripts/train_tokenizer.py \
    --dataset_name $data --output_dir $run/tokenizer \
    --config_overrides '{"image_size": 32, "base_channels": 32, "num_res_blocks": 1, "channel_multipliers": [1, 2],
        "temporal_downsample": [true], "stem_patch_size": [2, 2, 2], "norm_num_groups": 8, "pixel_mean": 0.16, "pixel_std": 0.1,
        "unmasked_clip_ratio": 0.25}' \
    --max_steps 600 --per_device_train_batch_size 4 --learning_rate 3e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
    --perceptual_weight 0 --logging_steps 50 --save_steps 200 --save_total_limit 1 --report_to none

# The clips are dark: pixels are standardized by their own mean, not by ImageNet's.
model='"image_size": 32, "patch_size": 4, "tubelet_size": 4, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 256, "image_mean": [0.16, 0.16, 0.16], "image_std": [0.2, 0.2, 0.2]'
decoder='"decoder_hidden_size": 64, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 256, "encoder_mask": "random"'

[ -f $run/pretrain/eval_results.json ] || {
    python scripts/cache_targets.py \
        --dataset_name $data --tokenizer $run/tokenizer --output_dir $run/targets --config_overrides "{$model, $decoder}"
    python scripts/pretrain.py \
        --dataset_name $data --target_cache $run/targets --output_dir $run/pretrain --config_overrides "{$model, $decoder}" \
        --num_train_epochs 10 --per_device_train_batch_size 8 --base_learning_rate 6.4e-2 --warmup_steps 0.1 \
        --lr_scheduler_type cosine --max_grad_norm 1 --dataloader_num_workers 1 \
        --logging_steps 20 --logging_first_step true --save_steps 200 --save_total_limit 1 --report_to none
}

# Fine-tune with and without pre-training, on a sixteenth of the tokens and on all of them; two trainings at a time.
finetune() {
    [ -f $run/$1/test_results.json ] || python scripts/finetune.py \
        --dataset_name $data --output_dir $run/$1 --test_split test "${@:2}" \
        --num_train_epochs 9 --per_device_train_batch_size 8 --learning_rate 2e-3 --layer_decay 1.0 --adam_beta2 0.95 \
        --warmup_steps 0.1 --eval_strategy epoch --save_strategy epoch --save_total_limit 1 \
        --logging_steps 40 --report_to none
}
chosen=(--tokenizer $run/tokenizer --token_keep_ratio 0.0625)
finetune finetune --model_name_or_path $run/pretrain "${chosen[@]}" --config_overrides '{"tube_drop_ratio": 0}' &
finetune finetune-scratch "${chosen[@]}" --config_overrides "{$model, \"tube_drop_ratio\": 0}"
wait $!
finetune finetune-all --model_name_or_path $run/pretrain --config_overrides '{"tube_drop_ratio": 0.75}' &
finetune finetune-all-scratch --config_overrides "{$model, \"tube_drop_ratio\": 0.75}"
wait $!

python scripts/report.py $run $data
