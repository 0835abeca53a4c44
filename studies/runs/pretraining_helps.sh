#!/usr/bin/env bash
# Two CPU cores, about an hour: does our own pre-training help, and how far does LoRA get? 1,600 unlabelled clips, labels for 640 of them,
# three seeds. The same network is fine-tuned from its pre-trained weights, from scratch, and through adapters.
# A stage that is done is not done again; delete runs/pretraining_helps to start anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=runs/pretraining_helps data=runs/pretraining_helps/data
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

python examples/make_digits.py $data --task motion --train 1600 --validation 160 --test 480

[ -f $run/tokenizer/eval_results.json ] || python scripts/train_tokenizer.py \
    --dataset_name $data --output_dir $run/tokenizer \
    --config_overrides '{"image_size": 32, "base_channels": 32, "num_res_blocks": 1, "channel_multipliers": [1, 2],
        "temporal_downsample": [true], "stem_patch_size": [2, 2, 2], "norm_num_groups": 8, "pixel_mean": 0.16, "pixel_std": 0.1,
        "unmasked_clip_ratio": 0.25}' \
    --max_steps 600 --per_device_train_batch_size 4 --learning_rate 3e-3 --scorer_learning_rate 1e-3 --adam_beta1 0.9 \
    --perceptual_weight 0 --logging_steps 50 --save_steps 200 --save_total_limit 1 --report_to none

network='"image_size": 32, "patch_size": 4, "tubelet_size": 4, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 256'
decoder='"decoder_hidden_size": 64, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 256'
python scripts/cache_targets.py --dataset_name $data --tokenizer $run/tokenizer --output_dir $run/targets \
    --config_overrides "{$network}"
[ -f $run/pretrain/eval_results.json ] || python scripts/pretrain.py \
    --dataset_name $data --target_cache $run/targets --output_dir $run/pretrain --config_overrides "{$network, $decoder}" \
    --num_train_epochs 12 --per_device_train_batch_size 16 --base_learning_rate 3.2e-2 --warmup_steps 0.1 --dataloader_num_workers 1 \
    --lr_scheduler_type cosine --max_grad_norm 1 \
    --logging_steps 20 --logging_first_step true --save_steps 200 --save_total_limit 1 --report_to none

finetune() {  # name, seed, what differs
    [ -f $run/$1_$2/test_results.json ] || python scripts/finetune.py \
        --dataset_name $data --max_train_samples 640 --output_dir $run/$1_$2 --seed $2 --test_split test \
        --num_train_epochs 12 --per_device_train_batch_size 8 --learning_rate 2e-3 --layer_decay 1.0 --adam_beta2 0.95 --warmup_steps 0.1 \
        --dataloader_num_workers 1 --eval_strategy no --save_strategy no --logging_steps 80 --report_to none "${@:3}" > $run/$1_$2.log 2>&1
}
# Low ranks everywhere, a higher one where the pixels come in: 4.5 % of the weights, which take longer to learn.
adapter='{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "rank_pattern": {"projection": 10}, "alpha_pattern": {"projection": 20},
    "target_modules": ["projection", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]}'
pretrained() { finetune pretrained $1 --model_name_or_path $run/pretrain --config_overrides '{"tube_drop_ratio": 0.75}'; }
scratch() { finetune scratch $1 --config_overrides "{$network, \"tube_drop_ratio\": 0.75}"; }
lora() {
    finetune lora $1 --model_name_or_path $run/pretrain --config_overrides '{"tube_drop_ratio": 0.75}' \
        --peft_config "$adapter" --learning_rate 7e-3 --num_train_epochs 18
}
for seed in 0 1 2; do
    for way in pretrained scratch lora; do
        while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
        $way $seed &
    done
done
wait
python studies/report_seeds.py $run pretrained scratch lora
