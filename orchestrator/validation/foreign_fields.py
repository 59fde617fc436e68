"""How other trainers call what is called otherwise, or does not exist, here: used to say what to write instead.

The names are those of transformers' TrainingArguments, TRL, LLaMA-Factory and axolotl, and common short forms. Nothing
is ever read under them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Document = Literal["job", "cluster"]
"""Which file a field stands in."""


@dataclass(frozen=True)
class ForeignField:
    """What stands for another trainer's field here.

    Attributes:
        job: Dotted name of the field of a job file, if there is one.
        cluster: Dotted name of the field of a cluster file, if there is one.
        note: What to write there, or why there is no such field.
    """

    job: str = ""
    cluster: str = ""
    note: str = ""

    def field(self, document: Document) -> str:
        """The dotted name of the field in this kind of file, or empty."""
        return self.job if document == "job" else self.cluster

    def advice(self, document: Document) -> str:
        """What to do about the field in this kind of file."""
        here, elsewhere = (self.job, self.cluster) if document == "job" else (self.cluster, self.job)
        if here:
            where = f"did you mean {here}?"
        elif elsewhere:
            where = f"it is {elsewhere} in the {'cluster' if document == 'job' else 'job'} file"
        else:
            return f"{self.note}; leave it out"
        return f"{where} ({self.note})" if self.note else where


_PACKED = ForeignField(note="samples are always packed without padding, each attending to itself alone")
_ATTENTION = ForeignField(note="the actor chooses the attention kernel by itself")
_DISTRIBUTED = ForeignField(note="an actor trains on one device, and jobs are spread over the actors")
_NOT_NEEDED = ForeignField(note="there is nothing of this kind to set here")
_PROJECT = ForeignField(
    "report_to", "report_to", note="the project is set by WANDB_PROJECT where the orchestrator is started"
)
_ADAMW = ForeignField(note="the optimizer is always AdamW, set by training.adam_beta1, adam_beta2 and weight_decay")
_FOLDER = ForeignField("output_dir", note="each job writes one adapter into it")
_EVERY_EPOCH = ForeignField(
    "training.eval_steps", note="without it each epoch is evaluated, where dataset.val_size is set"
)
_QUANTIZED = ForeignField(cluster="actors[].quantization", note="nf4 for 4 bits, int8 for 8 bits")
_DTYPE = ForeignField(cluster="actors[].dtype", note="bfloat16, float16 or float32")
_LENGTH = ForeignField("training.cutoff_len")
_BATCH = ForeignField("training.per_device_train_batch_size")
_EVAL_BATCH = ForeignField(note="evaluations use training.per_device_train_batch_size, which changes no loss but kto's")
_TARGETS = ForeignField("lora.target_modules")
_OBJECTIVE = ForeignField("training.objective")
_BETA = ForeignField("training.beta")
_START = ForeignField("lora.init_adapter")
_MIX = ForeignField("dataset.weight", note="of each data set in a list: how often an epoch takes its samples")

FOREIGN_FIELDS: Mapping[str, ForeignField] = {
    # the model
    "model": ForeignField("base_model", "actors[].base_model"),
    "model_name": ForeignField("base_model", "actors[].base_model"),
    "model_name_or_path": ForeignField("base_model", "actors[].base_model"),
    "adapter_name_or_path": _START,
    "lora_model_dir": _START,
    "load_in_8bit": _QUANTIZED,
    "load_in_4bit": _QUANTIZED,
    "quantization": _QUANTIZED,
    "quantization_bit": _QUANTIZED,
    "quantization_config": _QUANTIZED,
    "bf16": _DTYPE,
    "fp16": _DTYPE,
    "pure_bf16": _DTYPE,
    "dtype": _DTYPE,
    "torch_dtype": _DTYPE,
    "device": ForeignField(cluster="actors[].device"),
    "device_map": _DISTRIBUTED,
    "gradient_checkpointing": ForeignField(cluster="actors[].gradient_checkpointing"),
    "trust_remote_code": ForeignField(cluster="trust_remote_code"),
    "flash_attn": _ATTENTION,
    "flash_attention": _ATTENTION,
    "attn_implementation": _ATTENTION,
    "sdp_attention": _ATTENTION,
    "xformers_attention": _ATTENTION,
    # the data
    "data": ForeignField("dataset.path"),
    "datasets": ForeignField("dataset", note="a list of data sets, each with its path"),
    "mix_strategy": _MIX,
    "interleave_probs": _MIX,
    "dataset_path": ForeignField("dataset.path"),
    "dataset_name": ForeignField("dataset.path"),
    "dataset_text_field": ForeignField("dataset.columns", note="such as {text: content}"),
    "template": ForeignField(
        "dataset.chat_template", note="a .jinja file or the template itself; without it the base's own"
    ),
    "val_set_size": ForeignField("dataset.val_size"),
    "max_length": _LENGTH,
    "max_seq_length": _LENGTH,
    "model_max_length": _LENGTH,
    "sequence_len": _LENGTH,
    "max_prompt_length": ForeignField("training.cutoff_len", note="of prompt and answer together"),
    "max_samples": ForeignField(note="all records are read; make a file of those that you want"),
    "packing": _PACKED,
    "sample_packing": _PACKED,
    "eval_sample_packing": _PACKED,
    "neat_packing": _PACKED,
    "pad_to_sequence_len": _PACKED,
    "group_by_length": _PACKED,
    "train_on_prompt": ForeignField("training.train_on_inputs"),
    "assistant_only_loss": ForeignField("training.train_on_inputs", note="false, the default, learns answers only"),
    "completion_only_loss": ForeignField("training.train_on_inputs", note="false, the default, learns answers only"),
    "mask_history": ForeignField(note="every answer is learned but those of messages with `weight: 0`"),
    "overwrite_cache": _NOT_NEEDED,
    "preprocessing_num_workers": _NOT_NEEDED,
    "dataloader_num_workers": _NOT_NEEDED,
    "dataset_prepared_path": _NOT_NEEDED,
    "remove_unused_columns": _NOT_NEEDED,
    # the adapter
    "rank": ForeignField("lora.r"),
    "lora_r": ForeignField("lora.r"),
    "lora_rank": ForeignField("lora.r"),
    "alpha": ForeignField("lora.lora_alpha"),
    "dropout": ForeignField("lora.lora_dropout"),
    "lora_target": _TARGETS,
    "lora_target_modules": _TARGETS,
    "lora_target_linear": ForeignField("lora.target_modules", note="all-linear, which is the default"),
    "adapter": ForeignField("lora.peft_type", note="LORA or VERA"),
    "finetuning_type": ForeignField("lora.peft_type", note="LORA or VERA; all of a base model is never trained"),
    "pissa_init": ForeignField("lora.init_lora_weights", note="pissa"),
    "peft_use_dora": ForeignField("lora.use_dora"),
    "peft_use_rslora": ForeignField("lora.use_rslora"),
    # the training
    "lr": ForeignField("training.learning_rate"),
    "lr_scheduler": ForeignField("training.lr_scheduler_type"),
    "epochs": ForeignField("training.num_train_epochs"),
    "num_epochs": ForeignField("training.num_train_epochs"),
    "steps": ForeignField("training.max_steps"),
    "batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "per_device_eval_batch_size": _EVAL_BATCH,
    "eval_batch_size": _EVAL_BATCH,
    "auto_find_batch_size": ForeignField(note="the actor makes its batches smaller by itself where memory is short"),
    "optim": _ADAMW,
    "optimizer": _ADAMW,
    "data_seed": ForeignField("training.seed"),
    "neftune_noise_alpha": ForeignField(note="NEFTune (noise on the embeddings) does not exist here"),
    "noisy_embedding_alpha": ForeignField(note="NEFTune (noise on the embeddings) does not exist here"),
    "label_smoothing_factor": ForeignField(
        "training.label_smoothing", note="of the preference losses dpo and cpo only"
    ),
    "deepspeed": _DISTRIBUTED,
    "fsdp": _DISTRIBUTED,
    "fsdp_config": _DISTRIBUTED,
    "ddp_timeout": _DISTRIBUTED,
    "ddp_find_unused_parameters": _DISTRIBUTED,
    "tf32": _NOT_NEEDED,
    "torch_compile": _NOT_NEEDED,
    "use_liger_kernel": _NOT_NEEDED,
    "enable_liger_kernel": _NOT_NEEDED,
    "use_unsloth": _NOT_NEEDED,
    # the objective
    "stage": _OBJECTIVE,
    "rl": _OBJECTIVE,
    "pref_loss": ForeignField("training.loss_type", note="orpo and other losses of their own are training.objective"),
    "pref_beta": _BETA,
    "dpo_beta": _BETA,
    "rl_beta": _BETA,
    "kto_beta": _BETA,
    "kto_chosen_weight": ForeignField("training.desirable_weight"),
    "kto_desirable_weight": ForeignField("training.desirable_weight"),
    "kto_rejected_weight": ForeignField("training.undesirable_weight"),
    "kto_undesirable_weight": ForeignField("training.undesirable_weight"),
    "kto_tag": ForeignField("dataset.columns", note="{label: kto_tag}"),
    "pref_ftx": ForeignField("training.cpo_alpha", note="with training.objective: cpo"),
    "ref_model": ForeignField("training.reference_adapter", note="an adapter of the same base"),
    "ref_model_adapters": ForeignField("training.reference_adapter"),
    # files, evaluations, the queue
    "do_train": _NOT_NEEDED,
    "do_eval": ForeignField("dataset.val_size", note="samples to evaluate on"),
    "eval_strategy": _EVERY_EPOCH,
    "evaluation_strategy": _EVERY_EPOCH,
    "evals_per_epoch": _EVERY_EPOCH,
    "save_strategy": ForeignField("training.save_steps"),
    "saves_per_epoch": ForeignField("training.save_steps"),
    "load_best_model_at_end": ForeignField("early_stop.patience", note="which keeps the best adapter"),
    "early_stopping_patience": ForeignField("early_stop.patience"),
    "resume_from_checkpoint": ForeignField(note="a job goes on from its last checkpoint by itself"),
    "overwrite_output_dir": _FOLDER,
    "output": _FOLDER,
    "run_name": ForeignField("name"),
    "wandb_project": _PROJECT,
    "use_wandb": ForeignField("report_to", "report_to", note="[wandb]"),
    "logging_dir": ForeignField("report_to", "report_to", note="[tensorboard] writes into output_dir"),
    "plot_loss": ForeignField(note="`loray report` draws the losses"),
    "push_to_hub": ForeignField(
        note="the adapter is written to output_dir in PEFT's format, to be uploaded from there"
    ),
    "hub_model_id": ForeignField(
        note="the adapter is written to output_dir in PEFT's format, to be uploaded from there"
    ),
    "retries": ForeignField("queue.max_retries"),
    # the cluster
    "gpus": ForeignField(cluster="actors[].num_gpus"),
    "memory": ForeignField(cluster="actors[].memory_limit"),
    "db": ForeignField(cluster="database"),
}


def foreign_field(name: str) -> ForeignField | None:
    """What stands for another trainer's field here; None where the name is not theirs."""
    return FOREIGN_FIELDS.get(name.lower().replace("-", "_"))
