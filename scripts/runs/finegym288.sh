#!/usr/bin/env bash
# FineGym288 with a second of margin on either side of an element (prepare_dataset.py adds it), ViT-L, 128 frames over the whole clip, a
# quarter of the tubes dropped, one view: the paper's section 5. 8 GPUs of 80 GB; 244 GPU hours computed (scripts/estimate_cost.py, 35 %
# of an A100's peak, two clips a video); not run. Epochs, rates and augmentations are VideoMAE's, but for crops of at least half the picture. ANNOTATIONS: folder of the gym288_*.txt and
# finegym_annotation_info_v1.1.json; VIDEOS: folder of the whole videos; PRETRAINED: what pretrain.py wrote.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/finegym288

[ -d $run/data ] || python scripts/prepare_dataset.py finegym288 --annotations "${ANNOTATIONS:?}" --videos "${VIDEOS:?}" --output $run/data

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/finetune.py \
    --dataset_name $run/data --model_name_or_path "${PRETRAINED:?}" --output_dir $run/finetune \
    --config_overrides '{"tube_drop_ratio": 0.25, "drop_path_rate": 0.2}' \
    --min_crop_scale 0.5 --horizontal_flip --rand_augment_num_ops 4 --random_erasing_prob 0.25 --num_clips 2 \
    --mixup_alpha 0.8 --cutmix_alpha 1.0 --label_smoothing_factor 0.1 \
    --num_train_epochs 30 --warmup_steps 0.167 --base_learning_rate 5e-4 --layer_decay 0.8 \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --bf16 --activation_checkpointing \
    --dataloader_num_workers 12 --eval_strategy epoch --save_strategy epoch --save_total_limit 2

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/evaluate_classifier.py \
    --model_name_or_path $run/finetune --dataset_name $run/data --output_dir $run/validation --num_workers 12
