#include "client/foreign_job.h"

#include <algorithm>
#include <map>
#include <set>

#include "proto/base/status.h"
#include "proto/spec/field.h"
#include "proto/spec/node.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

struct Rule {
  const char* key;
  const char* field;  // of the spec
};

// Keys whose value is taken as it is.
constexpr Rule kAxolotl[] = {
    {"base_model", "model.source"},
    {"lora_r", "adapter.lora.r"},
    {"lora_alpha", "adapter.lora.lora_alpha"},
    {"lora_dropout", "adapter.lora.lora_dropout"},
    {"lora_target_modules", "adapter.lora.target_modules"},
    {"peft_use_rslora", "adapter.lora.use_rslora"},
    {"peft_layers_to_transform", "adapter.lora.layers_to_transform"},
    {"sequence_len", "data.max_length"},
    {"num_epochs", "run.num_train_epochs"},
    {"rl_beta", "objective.kto.beta"},
    {"kto_desirable_weight", "objective.kto.desirable_weight"},
    {"kto_undesirable_weight", "objective.kto.undesirable_weight"},
};
constexpr Rule kLlamaFactory[] = {
    {"model_name_or_path", "model.source"},
    {"lora_rank", "adapter.lora.r"},
    {"lora_alpha", "adapter.lora.lora_alpha"},
    {"lora_dropout", "adapter.lora.lora_dropout"},
    {"use_rslora", "adapter.lora.use_rslora"},
    {"cutoff_len", "data.max_length"},
    {"num_train_epochs", "run.num_train_epochs"},
    {"pref_beta", "objective.kto.beta"},
    {"kto_chosen_weight", "objective.kto.desirable_weight"},
    {"kto_rejected_weight", "objective.kto.undesirable_weight"},
};
constexpr Rule kBoth[] = {
    {"learning_rate", "optimizer.learning_rate"},
    {"weight_decay", "optimizer.weight_decay"},
    {"adam_epsilon", "optimizer.eps"},
    {"max_grad_norm", "optimizer.max_grad_norm"},
    {"warmup_ratio", "schedule.warmup_ratio"},
    {"max_steps", "run.max_steps"},
    {"seed", "run.seed"},
    {"logging_steps", "run.logging_steps"},
};

// Keys that say how, not what: the plan decides, or it is always so.
const std::map<std::string_view, std::string_view>& NotNeeded() {
  static const auto* const table = new std::map<std::string_view, std::string_view>{
      {"flash_attention", "attention is always fused"},
      {"flash_attn", "attention is always fused"},
      {"xformers_attention", "attention is always fused"},
      {"sdp_attention", "attention is always fused"},
      {"gradient_checkpointing", "the memory plan decides what is recomputed"},
      {"gradient_checkpointing_kwargs", "the memory plan decides what is recomputed"},
      {"output_dir", "the daemon keeps results; hone export fetches them"},
      {"overwrite_output_dir", "every job has a folder of its own"},
      {"dataset_prepared_path", "data is read as it is"},
      {"overwrite_cache", "data is read as it is"},
      {"preprocessing_num_workers", "data is read as it is"},
      {"dataloader_num_workers", "data is read as it is"},
      {"do_train", "a job trains"},
      {"group_by_length", "rows are packed without padding"},
      {"pad_to_sequence_len", "rows are packed without padding"},
      {"eval_sample_packing", "evaluation is packed where that is possible"},
      {"template", "the model's own chat template is used"},
      {"chat_template", "the model's own chat template is used"},
      {"model_type", "read from the model"},
      {"tokenizer_type", "read from the model"},
      {"trust_remote_code", "no code of a model is ever run"},
      {"strict", "every key is checked"},
      {"save_only_model", "checkpoints are whole, so that a job can go on"},
      {"plot_loss", "hone report draws the curves"},
      {"report_to", "metrics are served for Prometheus"},
      {"wandb_project", "metrics are served for Prometheus"},
      {"wandb_entity", "metrics are served for Prometheus"},
      {"wandb_watch", "metrics are served for Prometheus"},
      {"wandb_name", "metrics are served for Prometheus"},
      {"wandb_log_model", "metrics are served for Prometheus"},
      {"save_safetensors", "always"},
      {"resume_from_checkpoint", "a job goes on from its checkpoint by itself"},
      {"auto_resume_from_checkpoints", "a job goes on from its checkpoint by itself"},
      {"tf32", "only where a product's precision allows it"},
      {"train_on_inputs", "by the row's form: messages train the assistant's part"},
      {"special_tokens", "read from the model"},
      {"ddp_timeout", "one card"},
  };
  return *table;
}

std::string TextOf(const Node& node) {
  if (node.kind == Node::Kind::kScalar) return node.text;
  if (node.kind != Node::Kind::kList) return node.kind == Node::Kind::kNull ? "" : "{...}";
  std::string text = "[";
  for (const NodePtr& item : node.items) text += StrCat(text.size() > 1 ? ", " : "", TextOf(*item));
  return text + "]";
}

bool IsTrue(const std::string& text) { return text == "true" || text == "True" || text == "yes"; }
bool IsFalse(const std::string& text) { return text == "false" || text == "False" || text == "no" || text.empty(); }

class Reader {
 public:
  Reader(const Node& root, ForeignJob* job) : root_(root), job_(*job) {}

  void Read() {
    for (const Node::Entry& entry : root_.entries) keys_[entry.key] = entry.value.get();
    const bool kto = Text("rl") == "kto" || Text("stage") == "kto";
    Objective(kto);
    Batch();
    Adapter();
    for (const Rule& rule : kBoth) Take(rule);
    if (job_.format == ForeignFormat::kAxolotl) {
      for (const Rule& rule : kAxolotl) TakeUnlessKto(rule, kto);
      AxolotlData();
    } else {
      for (const Rule& rule : kLlamaFactory) TakeUnlessKto(rule, kto);
      LlamaFactoryData();
      // Theirs is twice the rank where it is not given, ours the rank.
      if (Has("lora_rank") && !Has("lora_alpha")) {
        const auto rank = ParseUnsigned(Text("lora_rank"));
        if (rank && *rank < 1'000'000) Set("lora_rank", "adapter.lora.lora_alpha", StrCat(*rank * 2));
      }
    }
    ModelPath();
    Optimizer();
    Schedule();
    Precision();
    Steps("save_steps", "run.save_steps");
    Steps("eval_steps", "run.eval_steps");
    Rest();
  }

 private:
  std::string Text(const std::string& key) const {
    const auto found = keys_.find(key);
    return found == keys_.end() ? "" : TextOf(*found->second);
  }
  bool Has(const std::string& key) const { return keys_.count(key) > 0 && !Text(key).empty(); }
  void Use(const std::string& key) { used_.insert(key); }
  void No(const std::string& key, std::string_view why) {
    Use(key);
    job_.not_mapped.push_back(StrCat(key, ": ", Text(key), ": ", why));
  }
  void NotNeededHere(const std::string& key, std::string_view why) {
    Use(key);
    job_.not_needed.push_back(StrCat(key, ": ", why));
  }
  // `value` for a field; what SetField says against it goes into the list.
  void Set(const std::string& key, const std::string& field, const std::string& value) {
    Use(key);
    const absl::Status set = SetField(job_.spec, StrCat(field, "=", value));
    if (set.ok()) {
      job_.mapped.push_back(StrCat(key, ": ", Text(key), " -> ", field, ": ", value));
    } else {
      job_.not_mapped.push_back(StrCat(key, ": ", Text(key), ": ", set.message()));
    }
  }
  void Take(const Rule& rule) {
    if (Has(rule.key)) Set(rule.key, rule.field, Text(rule.key));
  }
  void TakeUnlessKto(const Rule& rule, bool kto) {
    if (!kto && std::string_view(rule.field).rfind("objective.kto", 0) == 0) return;  // Rest() lists it
    Take(rule);
  }

  void Objective(bool kto) {
    for (const char* key : {"rl", "stage"}) {
      if (!Has(key)) continue;
      const std::string value = Text(key);
      value == "kto" || value == "sft" ? Set(key, StrCat("objective.", value), "{}")
                                       : No(key, "only supervised fine-tuning and KTO are offered");
    }
    if (!job_.spec.has_objective())
      kto ? (void)job_.spec.mutable_objective()->mutable_kto() : (void)job_.spec.mutable_objective()->mutable_sft();
  }

  // A name on a hub looks like a path.
  void ModelPath() {
    const std::string& source = job_.spec.model().source();
    const bool local = source.rfind('/', 0) == 0 || source.rfind('.', 0) == 0 || source.rfind('~', 0) == 0;
    if (source.empty() || local) return;
    job_.not_mapped.push_back(StrCat("model: ", source,
                                     ": if that is a name on a hub, fetch it and put the folder or .gguf file into "
                                     "model.source; nothing is downloaded"));
  }

  void Batch() {
    const std::string rows =
        job_.format == ForeignFormat::kAxolotl ? "micro_batch_size" : "per_device_train_batch_size";
    const auto each = ParseUnsigned(Has(rows) ? Text(rows) : "1");
    const auto times = ParseUnsigned(Has("gradient_accumulation_steps") ? Text("gradient_accumulation_steps") : "1");
    if (Has(rows) && Has("gradient_accumulation_steps")) Use("gradient_accumulation_steps");
    const std::string key = Has(rows) ? rows : "gradient_accumulation_steps";
    if (!each || !times || *each > 1'000'000 || *times > 1'000'000) return No(key, "whole numbers are expected");
    if (Has(key)) Set(key, "batch.examples", StrCat(*each * *times));
    if (!Has(key)) (void)SetField(job_.spec, "batch.examples=1");
    for (const char* eval : {"per_device_eval_batch_size", "eval_batch_size"}) {
      if (Has(eval)) NotNeededHere(eval, "the memory plan decides how many rows a launch has");
    }
  }

  void Adapter() {
    const std::string key = job_.format == ForeignFormat::kAxolotl ? "adapter" : "finetuning_type";
    const std::string kind = Text(key);
    if (kind == "lora" || kind == "qlora") {
      Use(key);
      job_.spec.mutable_adapter()->mutable_lora();
      job_.mapped.push_back(StrCat(key, ": ", kind, " -> adapter.lora"));
    } else {
      Use(key);
      job_.not_mapped.push_back(StrCat(key, ": ", kind.empty() ? "(none: full fine-tuning)" : kind,
                                       ": only LoRA is offered; this job trains a LoRA adapter instead"));
    }
    if (kind == "qlora" || IsTrue(Text("load_in_4bit")))
      Set(Has("load_in_4bit") ? "load_in_4bit" : key, "model.quantization", "nf4");
    if (Has("quantization_bit")) {
      Text("quantization_bit") == "4" ? Set("quantization_bit", "model.quantization", "nf4")
                                      : No("quantization_bit", "only 4 bits (NF4)");
    }
    for (const char* key8 : {"load_in_8bit", "load_in_4bit"}) {
      if (keys_.count(key8) == 0 || used_.count(key8) > 0) continue;
      IsFalse(Text(key8)) ? NotNeededHere(key8, "weights stay as they are") : No(key8, "only 4 bits (NF4)");
    }
    if (IsTrue(Text("lora_target_linear"))) Set("lora_target_linear", "adapter.lora.target_modules", "[all-linear]");
    if (Has("lora_target")) {
      const std::string target = Text("lora_target");
      Set("lora_target", "adapter.lora.target_modules", target == "all" ? "[all-linear]" : target);
    }
  }

  void AxolotlData() {
    const auto found = keys_.find("datasets");
    if (found != keys_.end() && found->second->kind == Node::Kind::kList && !found->second->items.empty()) {
      Use("datasets");
      bool first = true;
      for (const NodePtr& item : found->second->items) {
        for (const Node::Entry& entry : item->entries) {
          if (entry.key == "path" && first) {
            SetData("datasets.path", TextOf(*entry.value));
          } else if (entry.key == "path") {
            job_.not_mapped.push_back(StrCat("datasets.path: ", TextOf(*entry.value), ": one file a job; join them"));
          } else if (first) {
            job_.not_mapped.push_back(StrCat("datasets.", entry.key, ": ", TextOf(*entry.value),
                                             ": rows are messages, prompt and completion, or text"));
          }
        }
        first = false;
      }
    }
    EvalShare("val_set_size");
    if (Has("sample_packing")) {
      Set("sample_packing", "memory.packing", IsTrue(Text("sample_packing")) ? "on" : "off");
    }
  }

  void LlamaFactoryData() {
    if (Has("dataset")) {
      Use("dataset");
      const std::string name = Text("dataset");
      SetData("dataset",
              name.find('/') != std::string::npos || name.find('.') != std::string::npos ? name : name + ".jsonl");
      job_.not_mapped.push_back(StrCat("dataset: ", name,
                                       ": a name in dataset_info.json; check that data.train is its file, with rows of "
                                       "messages, prompt and completion, or text"));
    }
    EvalShare("val_size");
    if (Has("packing")) Set("packing", "memory.packing", IsTrue(Text("packing")) ? "on" : "off");
  }

  void SetData(const std::string& key, const std::string& path) {
    const absl::Status set = SetField(job_.spec, StrCat("data.train=", path));
    set.ok() ? job_.mapped.push_back(StrCat(key, ": ", path, " -> data.train"))
             : job_.not_mapped.push_back(StrCat(key, ": ", path, ": ", set.message()));
  }

  void EvalShare(const std::string& key) {
    if (!Has(key)) return;
    const auto share = ParseDouble(Text(key));
    if (share && *share >= 0 && *share < 1) return Set(key, "data.eval_fraction", Text(key));
    No(key, "a share below 1 is expected; for a number of rows put them into a file of their own (data.eval)");
  }

  void Optimizer() {
    const std::string key = Has("optimizer") ? "optimizer" : "optim";
    if (Has(key)) {
      const std::string name = Text(key);
      const bool eight = name.find("8bit") != std::string::npos;
      if (name.rfind("adamw", 0) == 0 || name.rfind("paged_adamw", 0) == 0) {
        Set(key, "optimizer.name", eight ? "adamw_8bit" : "adamw");
      } else {
        No(key, "adamw and adamw_8bit are offered");
      }
    }
    if (!Has("adam_beta1") && !Has("adam_beta2")) return;
    const std::string one = Has("adam_beta1") ? Text("adam_beta1") : "0.9";
    const std::string two = Has("adam_beta2") ? Text("adam_beta2") : "0.999";
    Set(Has("adam_beta1") ? "adam_beta1" : "adam_beta2", "optimizer.betas", StrCat("[", one, ", ", two, "]"));
    Use("adam_beta2");
  }

  void Schedule() {
    for (const char* key : {"lr_scheduler", "lr_scheduler_type"}) {
      if (!Has(key)) continue;
      std::string name = Text(key);
      if (name == "constant_with_warmup") name = "constant";
      Set(key, "schedule.name", name);
    }
    if (!Has("warmup_steps")) return;
    const auto warmup = ParseDouble(Text("warmup_steps"));
    const auto steps = ParseDouble(Text("max_steps"));
    if (warmup && steps && *steps > 0 && *warmup <= *steps) {
      Set("warmup_steps", "schedule.warmup_ratio", StrCat(*warmup / *steps));
    } else if (warmup && *warmup == 0) {
      Set("warmup_steps", "schedule.warmup_ratio", "0");
    } else {
      No("warmup_steps", "a share of the steps is expected: schedule.warmup_ratio");
    }
  }

  void Precision() {
    for (const char* key : {"bf16", "fp16"}) {
      if (!Has(key)) continue;
      const std::string value = Text(key);
      if (value == "auto" || IsFalse(value)) {
        NotNeededHere(key, "precision auto is bf16 on a card, fp32 on the CPU");
      } else if (std::string_view(key) == "bf16") {
        NotNeededHere(key, "precision auto is bf16 on a card");
      } else {
        No(key, "bf16 is used instead of fp16");
      }
    }
  }

  // Axolotl writes a share of the steps, too.
  void Steps(const std::string& key, const std::string& field) {
    if (!Has(key)) return;
    const auto value = ParseDouble(Text(key));
    value&&* value >= 1 ? Set(key, field, Text(key)) : No(key, "a whole number of steps is expected");
  }

  void Rest() {
    for (const Node::Entry& entry : root_.entries) {
      if (used_.count(entry.key) > 0) continue;
      const auto known = NotNeeded().find(entry.key);
      if (known != NotNeeded().end()) {
        job_.not_needed.push_back(StrCat(entry.key, ": ", known->second));
      } else if (!Has(entry.key) || IsFalse(Text(entry.key))) {
        job_.not_needed.push_back(StrCat(entry.key, ": off there, not there here"));
      } else {
        job_.not_mapped.push_back(StrCat(entry.key, ": ", Text(entry.key), ": there is nothing like it here"));
      }
    }
  }

  const Node& root_;
  ForeignJob& job_;
  std::map<std::string, const Node*> keys_;
  std::set<std::string> used_;
};

bool HasKey(const Node& root, std::string_view key) {
  return std::any_of(root.entries.begin(), root.entries.end(), [&](const auto& entry) { return entry.key == key; });
}

std::string OneLine(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return text;
}

}  // namespace

absl::StatusOr<ForeignJob> ReadForeignJob(std::string_view yaml, std::string_view file_name,
                                          std::string_view format_name) {
  HONE_ASSIGN_OR_RETURN(const NodePtr root, NodeFromYaml(yaml, file_name));
  if (root->kind != Node::Kind::kMap) return InvalidArgument(file_name, ": a map of keys is expected");
  ForeignJob job;
  if (format_name == "axolotl" || (format_name.empty() && HasKey(*root, "base_model"))) {
    job.format = ForeignFormat::kAxolotl;
  } else if (format_name == "llama-factory" || (format_name.empty() && HasKey(*root, "model_name_or_path"))) {
    job.format = ForeignFormat::kLlamaFactory;
  } else {
    return InvalidArgument(file_name,
                           ": neither base_model (axolotl) nor model_name_or_path (LLaMA-Factory) is in it; "
                           "--from says which it is");
  }
  Reader(*root, &job).Read();
  return job;
}

std::string ForeignJobYaml(const ForeignJob& job, std::string_view file_name) {
  std::string out = StrCat("# From ", OneLine(std::string(file_name)), " (",
                           job.format == ForeignFormat::kAxolotl ? "axolotl" : "LLaMA-Factory", ").\n");
  if (!job.not_mapped.empty()) out += "# Not mapped, look at these:\n";
  for (const std::string& line : job.not_mapped) out += StrCat("#   ", OneLine(line), "\n");
  if (!job.not_needed.empty()) out += "# Not needed here:\n";
  for (const std::string& line : job.not_needed) out += StrCat("#   ", OneLine(line), "\n");
  return out + SpecToYaml(job.spec);
}

}  // namespace hone
