#!/usr/bin/env bash
# Something-Something v2, ViT-B, 64 frames over the whole clip, no tubes dropped, one view (the paper's section 5; its gains level off
# beyond 64 frames). 8 GPUs of 24 GB; 204 GPU hours of an A100 computed (scripts/estimate_cost.py, 35 % of its peak, two clips a video);
# not run. VideoMAE's recipe: no mirroring, for left and right are classes. ANNOTATIONS: folder of train.json, validation.json and
# labels.json; VIDEOS: folder of the .webm; PRETRAINED: what pretrain.py wrote.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/something_something_v2

[ -d $run/data ] || python scripts/prepare_dataset.py something_something_v2 --annotations "${ANNOTATIONS:?}" --videos "${VIDEOS:?}" \
    --output $run/data

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/finetune.py \
    --dataset_name $run/data --model_name_or_path "${PRETRAINED:?}" --output_dir $run/finetune \
    --config_overrides '{"num_frames": 64, "tube_drop_ratio": 0.0, "drop_path_rate": 0.1}' \
    --min_crop_scale 0.08 --rand_augment_num_ops 4 --random_erasing_prob 0.25 --num_clips 2 \
    --mixup_alpha 0.8 --cutmix_alpha 1.0 --label_smoothing_factor 0.1 \
    --num_train_epochs 30 --warmup_steps 0.167 --base_learning_rate 5e-4 --layer_decay 0.75 \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --bf16 \
    --activation_checkpointing --activation_checkpointing_kwargs '{"mlp_only": true}' \
    --dataloader_num_workers 12 --eval_strategy epoch --save_strategy epoch --save_total_limit 2

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/evaluate_classifier.py \
    --model_name_or_path $run/finetune --dataset_name $run/data --output_dir $run/validation --num_workers 12
