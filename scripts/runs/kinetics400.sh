#!/usr/bin/env bash
# Kinetics-400, which the paper does not report: VideoMAE's recipe for ViT-B (75 epochs, learning rate 1e-3) on 64 frames 4 apart, most of a
# ten-second clip; one view. 8 GPUs of 24 GB; 746 GPU hours of an A100 computed (scripts/estimate_cost.py, 35 % of its peak, two clips a
# video); not run. ANNOTATIONS: folder of the csv files; VIDEOS: folder of the videos; PRETRAINED: what pretrain.py wrote.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/kinetics400

[ -d $run/data ] || python scripts/prepare_dataset.py kinetics400 --annotations "${ANNOTATIONS:?}" --videos "${VIDEOS:?}" --output $run/data

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/finetune.py \
    --dataset_name $run/data --model_name_or_path "${PRETRAINED:?}" --output_dir $run/finetune \
    --config_overrides '{"num_frames": 64, "tube_drop_ratio": 0.0, "drop_path_rate": 0.1}' \
    --frame_stride 4 --min_crop_scale 0.08 --horizontal_flip --rand_augment_num_ops 4 --random_erasing_prob 0.25 --num_clips 2 \
    --mixup_alpha 0.8 --cutmix_alpha 1.0 --label_smoothing_factor 0.1 \
    --num_train_epochs 75 --warmup_steps 0.067 --base_learning_rate 1e-3 --layer_decay 0.75 \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --bf16 \
    --activation_checkpointing --activation_checkpointing_kwargs '{"mlp_only": true}' \
    --dataloader_num_workers 12 --eval_strategy epoch --save_strategy epoch --save_total_limit 2

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/evaluate_classifier.py \
    --model_name_or_path $run/finetune --dataset_name $run/data --frame_stride 4 --output_dir $run/validation --num_workers 12
