// Defaults, every rule, advice.
#include <limits>

#include "tests/spec/spec_testing.h"

namespace hone {
namespace {

using ::testing::HasSubstr;

// Resolves the minimal KTO or SFT spec after some --set; returns the error's message, and its field through `field`.
std::string ResolveError(v1::JobSpec spec, std::string* field = nullptr) {
  const absl::StatusOr<v1::JobSpec> resolved = ResolveSpec(spec);
  EXPECT_FALSE(resolved.ok()) << SpecToYaml(spec);
  if (resolved.ok()) return "";
  EXPECT_EQ(resolved.status().code(), absl::StatusCode::kInvalidArgument);
  if (field != nullptr) *field = FieldOf(resolved.status());
  EXPECT_FALSE(FieldOf(resolved.status()).empty()) << resolved.status();
  return MessageOf(resolved.status());
}

v1::JobSpec With(v1::JobSpec spec, std::initializer_list<const char*> sets) {
  for (const char* set : sets) {
    const absl::Status status = SetField(spec, set);
    EXPECT_TRUE(status.ok()) << status;
  }
  return spec;
}

TEST(ResolveSpec, FillsEveryDefaultOfTheContract) {
  const absl::StatusOr<v1::JobSpec> resolved = ResolveSpec(MinimalKto());
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  const v1::JobSpec& spec = *resolved;
  EXPECT_EQ(spec.name(), "kto-m");
  EXPECT_EQ(spec.model().quantization(), v1::QUANTIZATION_NONE);
  EXPECT_EQ(spec.adapter().lora().r(), 16u);
  EXPECT_EQ(spec.adapter().lora().lora_alpha(), 16.0);
  EXPECT_EQ(spec.adapter().lora().lora_dropout(), 0.0);
  EXPECT_TRUE(spec.adapter().lora().has_use_rslora());
  EXPECT_FALSE(spec.adapter().lora().use_rslora());
  EXPECT_THAT(spec.adapter().lora().target_modules(), ::testing::ElementsAre("all-linear"));
  EXPECT_EQ(spec.objective().kto().beta(), 0.1);
  EXPECT_EQ(spec.objective().kto().desirable_weight(), 1.0);
  EXPECT_EQ(spec.objective().kto().undesirable_weight(), 1.0);
  EXPECT_EQ(spec.objective().kto().kl_group_size(), 4u);
  EXPECT_EQ(spec.data().eval_fraction(), 0.0);
  EXPECT_EQ(spec.data().max_length(), 1024u);
  EXPECT_EQ(spec.data().max_prompt_length(), 512u);
  EXPECT_EQ(spec.data().order(), v1::ORDER_SHUFFLED);
  EXPECT_EQ(spec.optimizer().name(), v1::OPTIMIZER_NAME_ADAMW);
  EXPECT_EQ(spec.optimizer().weight_decay(), 0.0);
  EXPECT_THAT(spec.optimizer().betas(), ::testing::ElementsAre(0.9, 0.999));
  EXPECT_EQ(spec.optimizer().eps(), 1e-8);
  EXPECT_EQ(spec.optimizer().max_grad_norm(), 1.0);
  EXPECT_EQ(spec.schedule().name(), v1::SCHEDULE_NAME_LINEAR);
  EXPECT_EQ(spec.schedule().warmup_ratio(), 0.0);
  EXPECT_EQ(spec.run().num_train_epochs(), 1.0);
  EXPECT_FALSE(spec.run().has_max_steps());
  EXPECT_EQ(spec.run().seed(), 42u);
  EXPECT_EQ(spec.run().device(), v1::DEVICE_AUTO);
  EXPECT_EQ(spec.run().precision(), v1::PRECISION_AUTO);
  EXPECT_EQ(spec.run().logging_steps(), 1u);
  EXPECT_EQ(spec.run().on_nan(), v1::ON_NAN_STOP);
  EXPECT_EQ(spec.memory().policy(), v1::MEMORY_POLICY_BALANCED);
  EXPECT_EQ(spec.memory().packing(), v1::PACKING_AUTO);
  EXPECT_FALSE(spec.memory().has_vram_budget());
  EXPECT_THAT(spec.export_(), ::testing::ElementsAre("peft"));
}

TEST(ResolveSpec, IsIdempotentAndKeepsWhatIsSet) {
  const v1::JobSpec given = Parse(kContractJob);
  const auto once = ResolveSpec(given);
  ASSERT_TRUE(once.ok()) << once.status();
  const auto twice = ResolveSpec(*once);
  ASSERT_TRUE(twice.ok()) << twice.status();
  EXPECT_TRUE(SameResolvedSpec(*once, *twice));
  EXPECT_EQ(once->adapter().lora().lora_alpha(), 32.0);
  EXPECT_EQ(once->run().save_steps(), 24u);
  const auto back = SpecFromYaml(SpecToYaml(*once), "back");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(SameResolvedSpec(*back, *once));
}

TEST(ResolveSpec, ComputedDefaults) {
  EXPECT_EQ(ResolveSpec(With(MinimalSft(), {"adapter={lora: {r: 4}}"}))->adapter().lora().lora_alpha(), 4.0);
  EXPECT_EQ(ResolveSpec(With(MinimalSft(), {"run.max_steps=48"}))->run().save_steps(), 4u);
  EXPECT_EQ(ResolveSpec(With(MinimalSft(), {"run.max_steps=3"}))->run().save_steps(), 1u);
  EXPECT_EQ(ResolveSpec(With(MinimalSft(), {"model.source=/m/Qwen2.5-0.5B/"}))->name(), "sft-Qwen2.5-0.5B");
  EXPECT_EQ(ResolveSpec(With(MinimalSft(), {"model.source=random:/shapes/tiny/config.json"}))->name(), "sft-tiny");
  EXPECT_EQ(ResolveSpec(With(MinimalKto(), {"data.max_length=64"}))->data().max_prompt_length(), 32u);
  EXPECT_EQ(ResolveSpec(With(MinimalSft(), {"data.max_length=64"}))->data().max_prompt_length(), 512u);
}

TEST(ResolveSpec, RequiredFields) {
  struct Case {
    const char* unset;
    const char* field;
  };
  for (const Case& c : {Case{"batch=", "batch.examples"}, Case{"batch.examples=", "batch.examples"},
                        Case{"optimizer=", "optimizer.learning_rate"}, Case{"model=", "model.source"},
                        Case{"data=", "data.train"}, Case{"objective=", "objective"}}) {
    std::string field;
    EXPECT_THAT(ResolveError(With(MinimalSft(), {c.unset}), &field), HasSubstr("required")) << c.unset;
    EXPECT_EQ(field, c.field);
  }
  std::string field;
  ResolveError(v1::JobSpec(), &field);
  EXPECT_EQ(field, "model.source");
}

TEST(ResolveSpec, RangesHoldForMessagesFromTheWire) {
  std::string field;
  v1::JobSpec spec = MinimalSft();
  spec.mutable_optimizer()->set_learning_rate(std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(ResolveError(spec, &field), HasSubstr("must be a finite number, got nan"));
  EXPECT_EQ(field, "optimizer.learning_rate");
  spec = MinimalSft();
  spec.mutable_optimizer()->set_learning_rate(std::numeric_limits<double>::infinity());
  EXPECT_THAT(ResolveError(spec), HasSubstr("must be a finite number"));
  spec = MinimalSft();
  spec.mutable_adapter()->mutable_lora()->set_r(0);
  EXPECT_THAT(ResolveError(spec, &field), HasSubstr("adapter.lora.r: must be at least 1, got 0"));
  EXPECT_EQ(field, "adapter.lora.r");
  spec = MinimalSft();
  spec.mutable_adapter()->mutable_lora()->set_r(2000);
  EXPECT_THAT(ResolveError(spec), HasSubstr("must be at most 1024"));
  spec = MinimalSft();
  spec.mutable_adapter()->mutable_lora()->set_lora_dropout(0.1);
  EXPECT_THAT(ResolveError(spec), HasSubstr("must be 0, got 0.1"));
  spec = MinimalSft();
  spec.mutable_batch()->set_examples(0);
  EXPECT_THAT(ResolveError(spec), HasSubstr("batch.examples: must be at least 1"));
  spec = MinimalSft();
  spec.mutable_run()->set_precision(static_cast<v1::Precision>(77));
  EXPECT_THAT(ResolveError(spec),
              HasSubstr("run.precision: expected one of auto, fp32, bf16, got the unknown value 77"));
  spec = MinimalSft();
  spec.mutable_run()->set_device(v1::DEVICE_UNSPECIFIED);
  EXPECT_THAT(ResolveError(spec), HasSubstr("run.device"));
  spec = MinimalSft();
  spec.mutable_model()->set_source("");
  EXPECT_THAT(ResolveError(spec), HasSubstr("model.source: must not be empty"));
  spec = MinimalSft();
  spec.set_name(std::string("a\0b", 3));
  EXPECT_THAT(ResolveError(spec), HasSubstr("NUL"));
  spec = MinimalSft();
  spec.add_export_("");
  EXPECT_THAT(ResolveError(spec), HasSubstr("export[0]: must not be empty"));
}

TEST(ResolveSpec, FieldsOfANewerClientAreRefused) {
  v1::JobSpec spec = MinimalSft();
  spec.mutable_run()->GetReflection()->MutableUnknownFields(spec.mutable_run())->AddVarint(900, 1);
  std::string field;
  EXPECT_THAT(ResolveError(spec, &field), HasSubstr("field number 900"));
  EXPECT_EQ(field, "run");
}

TEST(ResolveSpec, KtoGroups) {
  std::string field;
  EXPECT_THAT(ResolveError(With(MinimalKto(), {"batch.examples=1"}), &field), HasSubstr("raise batch.examples"));
  EXPECT_EQ(field, "objective.kto.kl_group_size");
  v1::JobSpec spec = MinimalKto();
  spec.mutable_objective()->mutable_kto()->set_kl_group_size(1);
  EXPECT_THAT(ResolveError(spec), HasSubstr("must be at least 2, got 1"));
  EXPECT_TRUE(ResolveSpec(With(MinimalKto(), {"batch.examples=1", "objective.kto.kl_group_size=2"})).ok());
  EXPECT_TRUE(ResolveSpec(With(MinimalSft(), {"batch.examples=1"})).ok());
  EXPECT_THAT(
      ResolveError(With(MinimalKto(), {"objective.kto.desirable_weight=0", "objective.kto.undesirable_weight=0"})),
      HasSubstr("both weights are 0"));
}

TEST(ResolveSpec, Betas) {
  std::string field;
  EXPECT_THAT(ResolveError(With(MinimalSft(), {"optimizer.betas=0.9"}), &field), HasSubstr("exactly two"));
  EXPECT_EQ(field, "optimizer.betas");
  EXPECT_THAT(ResolveError(With(MinimalSft(), {"optimizer.betas=0.9,0.99,0.999"})), HasSubstr("got 3"));
}

TEST(ResolveSpec, TargetModules) {
  const auto error = [](const char* set) { return ResolveError(With(MinimalSft(), {set})); };
  EXPECT_THAT(error("adapter.lora.target_modules=lm_head"), HasSubstr("never trained"));
  EXPECT_THAT(error("adapter.lora.target_modules=q_porj"), HasSubstr("did you mean q_proj?"));
  EXPECT_THAT(error("adapter.lora.target_modules=banana"), HasSubstr("known: q_proj"));
  EXPECT_THAT(error("adapter.lora.target_modules=q_proj,q_proj"), HasSubstr("given twice"));
  EXPECT_THAT(error("adapter.lora.target_modules=all-linear,q_proj"), HasSubstr("already names"));
  EXPECT_THAT(error("adapter.lora.layers_to_transform=1,1"), HasSubstr("layer 1 is given twice"));
  EXPECT_TRUE(ResolveSpec(With(MinimalSft(), {"adapter.lora.target_modules=q_proj,down_proj"})).ok());
}

TEST(ResolveSpec, Exports) {
  const auto error = [](const char* set) { return ResolveError(With(MinimalSft(), {set})); };
  EXPECT_THAT(error("export=gguf:q8_1"), HasSubstr("did you mean gguf:q8_0?"));
  EXPECT_THAT(error("export=onnxruntime"), HasSubstr("known: peft, merged"));
  EXPECT_THAT(error("export=peft,peft"), HasSubstr("given twice"));
  EXPECT_THAT(error("export=merged,merged:f32"), HasSubstr("choose one"));
  EXPECT_TRUE(ResolveSpec(With(MinimalSft(), {"export=peft,merged:f32,gguf:f16,gguf:q8_0"})).ok());
}

TEST(ResolveSpec, DataRules) {
  std::string field;
  EXPECT_THAT(ResolveError(With(MinimalSft(), {"data.eval=e.jsonl", "data.eval_fraction=0.1"}), &field),
              HasSubstr("set one"));
  EXPECT_EQ(field, "data.eval_fraction");
  EXPECT_TRUE(ResolveSpec(With(MinimalSft(), {"data.eval=e.jsonl", "data.eval_fraction=0"})).ok());
  EXPECT_THAT(ResolveError(With(MinimalSft(), {"data.train=sha256:abc"})), HasSubstr("64 lower-case hex"));
  EXPECT_TRUE(ResolveSpec(With(MinimalSft(), {("data.train=sha256:" + std::string(64, 'a')).c_str()})).ok());
  EXPECT_THAT(ResolveError(With(MinimalKto(), {"data.max_length=64", "data.max_prompt_length=64"}), &field),
              HasSubstr("must be below data.max_length (64)"));
  EXPECT_EQ(field, "data.max_prompt_length");
}

TEST(ResolveSpec, ModelSources) {
  for (const char* good :
       {"model.source=qwen2.5-0.5b", "model.source=./Big", "model.source=Up.gguf", "model.source=random:/a/c.json"}) {
    EXPECT_TRUE(ResolveSpec(With(MinimalSft(), {good})).ok()) << good;
  }
  for (const char* bad :
       {"model.source=Has Space", "model.source=UPPER", "model.source=.hidden", "model.source=random:"}) {
    std::string field;
    ResolveError(With(MinimalSft(), {bad}), &field);
    EXPECT_EQ(field, "model.source") << bad;
  }
}

TEST(SameResolvedSpec, SeesEveryDifference) {
  const v1::JobSpec a = *ResolveSpec(MinimalSft());
  EXPECT_TRUE(SameResolvedSpec(a, a));
  EXPECT_FALSE(SameResolvedSpec(a, With(a, {"run.seed=43"})));
  EXPECT_FALSE(SameResolvedSpec(MinimalSft(), a));
}

TEST(Advice, WarnsAndNeverRewrites) {
  const auto advice = [](v1::JobSpec spec) {
    const auto resolved = ResolveSpec(spec);
    EXPECT_TRUE(resolved.ok()) << resolved.status();
    return Advice(*resolved);
  };
  EXPECT_TRUE(advice(Parse(kContractJob)).empty());
  const v1::JobSpec low = With(Parse(kContractJob), {"optimizer.learning_rate=1e-6"});
  ASSERT_EQ(advice(low).size(), 1u);
  EXPECT_THAT(advice(low)[0], HasSubstr("full fine-tuning"));
  EXPECT_EQ(ResolveSpec(low)->optimizer().learning_rate(), 1e-6);
  EXPECT_THAT(advice(With(Parse(kContractJob), {"optimizer.learning_rate=0.1"}))[0], HasSubstr("may diverge"));
  EXPECT_THAT(advice(With(Parse(kContractJob), {"optimizer.learning_rate=0"}))[0],
              HasSubstr("nothing will be learned"));
  EXPECT_THAT(advice(With(MinimalSft(), {"run.eval_steps=5"}))[0], HasSubstr("no effect"));
  EXPECT_THAT(advice(With(Parse(kContractJob), {"objective.kto.kl_group_size=16"}))[0],
              HasSubstr("above batch.examples"));
  EXPECT_THAT(advice(With(Parse(kContractJob), {"batch.examples=2", "objective.kto.kl_group_size=2"}))[0],
              HasSubstr("noisy"));
}

}  // namespace
}  // namespace hone
