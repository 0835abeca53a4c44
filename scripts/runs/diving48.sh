#!/usr/bin/env bash
# Diving48 as in the paper's section 5: ViT-L, 128 frames over the whole dive, class attention, a quarter of the tubes dropped, 50 epochs,
# one view. 8 GPUs of 80 GB; 213 GPU hours computed (scripts/estimate_cost.py, 35 % of an A100's peak, two clips a video); not run.
# What the paper does not say is VideoMAE's recipe. ANNOTATIONS: folder of Diving48_V2_train.json, Diving48_V2_test.json,
# Diving48_vocab.json; VIDEOS: folder of the videos; PRETRAINED: what pretrain.py wrote (first stages of diving48_two_stage.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/diving48

[ -d $run/data ] || python scripts/prepare_dataset.py diving48 --annotations "${ANNOTATIONS:?}" --videos "${VIDEOS:?}" --output $run/data

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/finetune.py \
    --dataset_name $run/data --eval_split test --model_name_or_path "${PRETRAINED:?}" --output_dir $run/finetune \
    --config_overrides '{"pooling": "class_attention", "tube_drop_ratio": 0.25, "drop_path_rate": 0.2}' \
    --min_crop_scale 0.5 --horizontal_flip --rand_augment_num_ops 4 --random_erasing_prob 0.25 --num_clips 2 \
    --mixup_alpha 0.8 --cutmix_alpha 1.0 --label_smoothing_factor 0.1 \
    --num_train_epochs 50 --warmup_steps 0.1 --base_learning_rate 5e-4 --layer_decay 0.8 \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --bf16 --activation_checkpointing \
    --dataloader_num_workers 12 --eval_strategy epoch --save_strategy epoch --save_total_limit 2

accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/evaluate_classifier.py \
    --model_name_or_path $run/finetune --dataset_name $run/data --split test --output_dir $run/test --num_workers 12
