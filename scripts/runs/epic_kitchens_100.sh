#!/usr/bin/env bash
# EPIC-Kitchens-100, verbs and nouns together, as in the paper's section 5: ViT-L, 128 consecutive frames, class attention, a quarter of
# the tubes dropped, one view. 8 GPUs of 80 GB; 571 GPU hours computed (scripts/estimate_cost.py, 35 % of an A100's peak, two clips a
# video); not run. The paper's epochs and rates are not public: VideoMAE's recipe stands in. Clips of less than 128 frames (mean 92)
# are stretched. ANNOTATIONS: folder of the EPIC_100_*.csv; VIDEOS: folder of the long videos; PRETRAINED: what pretrain.py wrote.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/epic_kitchens_100

[ -d $run/data ] || python scripts/prepare_dataset.py epic_kitchens_100 --annotations "${ANNOTATIONS:?}" --videos "${VIDEOS:?}" \
    --output $run/data

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/finetune.py \
    --dataset_name $run/data --label_column verb,noun --model_name_or_path "${PRETRAINED:?}" --output_dir $run/finetune \
    --config_overrides '{"pooling": "class_attention", "tube_drop_ratio": 0.25, "drop_path_rate": 0.2}' \
    --frame_stride 1 --min_crop_scale 0.5 --rand_augment_num_ops 4 --random_erasing_prob 0.25 --num_clips 2 \
    --mixup_alpha 0.8 --cutmix_alpha 1.0 --label_smoothing_factor 0.1 \
    --num_train_epochs 30 --warmup_steps 0.167 --base_learning_rate 5e-4 --layer_decay 0.8 \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --bf16 --activation_checkpointing \
    --dataloader_num_workers 12 --eval_strategy epoch --save_strategy epoch --save_total_limit 2

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/evaluate_classifier.py \
    --model_name_or_path $run/finetune --dataset_name $run/data --label_column verb,noun --frame_stride 1 --output_dir $run/validation \
    --num_workers 12
