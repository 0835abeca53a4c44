#!/usr/bin/env bash
# Two CPU cores, 25 minutes beside other work: count how often a digit flashes in 128 frames, from scratch. Each flash lasts 2 frames,
# so a model that sees one view of 32 evenly spaced frames is right on at most 0.40 of the clips (make_digits.py prints the ceilings).
# Patches are as fine as they are because a white digit then fills some of them, which a single Linear can tell.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/long_range data=runs/long_range/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

python examples/make_digits.py $data --task flash --train 1200 --validation 120 --test 360

python scripts/finetune.py --dataset_name $data --output_dir $run/finetune --test_split test \
    --config_overrides '{"image_size": 32, "patch_size": 4, "tubelet_size": 4, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 256, "tube_drop_ratio": 0.75}' \
    --num_train_epochs 25 --per_device_train_batch_size 8 --learning_rate 2e-3 --layer_decay 1.0 --adam_beta2 0.95 \
    --warmup_steps 0.05 --dataloader_num_workers 1 --eval_strategy epoch --save_strategy epoch --save_total_limit 1 \
    --logging_steps 150 --report_to none
