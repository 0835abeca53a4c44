#!/usr/bin/env bash
# The paper's way to Diving48 with extra data (sections 4 and 5): ViT-L, 128 frames; 800 epochs on unlabelled Kinetics-710, then a new
# pre-training on Diving48 that starts from those weights, then fine-tuning. Two nodes of 8 GPUs, weeks: not run here.
# Fine-tuning is diving48.sh: ANNOTATIONS and VIDEOS as there. K710 and DIVING48 are folders or Hub ids that load_video_dataset reads, TOKENIZER a trained tokenizer. On one machine, put
# "accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/pretrain.py" in place of "sbatch --wait ...".
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/diving48_two_stage
pretrain="sbatch --wait scripts/slurm/pretrain.sbatch --tokenizer ${TOKENIZER:?} --bf16 --activation_checkpointing
    --frame_stride 2 --min_crop_scale 0.5 --per_device_train_batch_size 4 --gradient_accumulation_steps 8 --warmup_steps 0.025
    --dataloader_num_workers 12 --logging_steps 50 --save_steps 500 --save_total_limit 2"

# A job that was put into the queue again is the same job: --wait sees only its end.
[ -f $run/big/train_results.json ] || $pretrain --dataset_name "${K710:?}" --output_dir $run/big \
    --model_size large --num_train_epochs 800

# A new optimizer and schedule, only the weights go on; --model_size is the checkpoint's.
[ -f $run/downstream/train_results.json ] || $pretrain --dataset_name "${DIVING48:?}" --eval_split test --output_dir $run/downstream \
    --model_name_or_path $run/big --num_train_epochs 1600

PRETRAINED=$run/downstream ANNOTATIONS="${ANNOTATIONS:?}" VIDEOS="${VIDEOS:?}" bash scripts/runs/diving48.sh
