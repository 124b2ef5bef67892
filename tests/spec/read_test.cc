// YAML, JSON and --set: what is read, and what each mistake is told.
#include "proto/spec/message_json.h"
#include "tests/spec/spec_testing.h"

namespace hone {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string YamlError(std::string_view yaml) {
  const absl::StatusOr<v1::JobSpec> spec = SpecFromYaml(yaml, "job.yaml");
  EXPECT_FALSE(spec.ok());
  if (spec.ok()) return "";
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  return MessageOf(spec.status());
}

std::string SetError(std::string_view text) {
  v1::JobSpec spec = Parse(kContractJob);
  const std::string before = CanonicalSpecBytes(spec);
  const absl::Status status = SetField(spec, text);
  EXPECT_FALSE(status.ok()) << text;
  EXPECT_EQ(CanonicalSpecBytes(spec), before) << "a refused --set changed the spec";
  return MessageOf(status);
}

TEST(SpecFromYaml, ReadsTheContractsJob) {
  const v1::JobSpec spec = Parse(kContractJob);
  EXPECT_EQ(spec.name(), "short-answers");
  EXPECT_EQ(spec.model().source(), "~/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  EXPECT_EQ(spec.model().quantization(), v1::QUANTIZATION_NONE);
  EXPECT_EQ(spec.adapter().lora().r(), 16u);
  EXPECT_EQ(spec.adapter().lora().lora_alpha(), 32.0);
  ASSERT_EQ(spec.adapter().lora().target_modules_size(), 1);
  EXPECT_EQ(spec.objective().kto().beta(), 0.1);
  EXPECT_EQ(spec.objective().kto().kl_group_size(), 8u);
  EXPECT_EQ(spec.data().order(), v1::ORDER_SHUFFLED);
  EXPECT_EQ(spec.optimizer().learning_rate(), 1e-4);
  EXPECT_EQ(spec.run().seed(), 3407u);
  EXPECT_FALSE(spec.run().has_precision());
  EXPECT_EQ(spec.memory().vram_budget(), uint64_t{20} << 30);
  ASSERT_EQ(spec.export__size(), 3);
  EXPECT_EQ(spec.export_(2), "gguf:q8_0");
}

TEST(SpecFromYaml, ReadsJsonToo) {
  const v1::JobSpec spec = Parse(R"({"name": "caf\u00e9 \ud83d\ude00", "optimizer": {"learning_rate": 5e-5}})");
  EXPECT_EQ(spec.name(), "café 😀");
  EXPECT_EQ(spec.optimizer().learning_rate(), 5e-5);
}

TEST(SpecFromYaml, UnknownFieldNamesPlaceAndNearest) {
  EXPECT_EQ(YamlError("name: a\nmodel: {source: x}\noptimizer:\n  learing_rate: 1e-4\n"),
            "job.yaml:4:3: optimizer.learing_rate: unknown field; did you mean learning_rate?");
}

TEST(SpecFromYaml, UnknownFieldElsewhereAndForeignNames) {
  EXPECT_THAT(YamlError("learning_rate: 1e-4\n"), HasSubstr("did you mean optimizer.learning_rate?"));
  EXPECT_THAT(YamlError("lr: 1e-4\n"), HasSubstr("Hone's name for it is optimizer.learning_rate"));
  EXPECT_THAT(YamlError("run: {zzzzzzzzzzzz: 1}\n"), HasSubstr("known here: num_train_epochs, max_steps"));
}

TEST(SpecFromYaml, DuplicateKey) {
  EXPECT_EQ(YamlError("batch:\n  examples: 1\n  examples: 2\n"),
            "job.yaml:3:3: batch.examples: given twice; first on line 2");
}

TEST(SpecFromYaml, TypeErrors) {
  EXPECT_EQ(YamlError("batch: {examples: many}"),
            "job.yaml:1:19: batch.examples: expected a whole number from 0 to 4294967295, got `many`");
  EXPECT_THAT(YamlError("batch: {examples: -3}"), HasSubstr("got `-3`"));
  EXPECT_THAT(YamlError("batch: {examples: 4294967296}"), HasSubstr("got `4294967296`"));
  EXPECT_THAT(YamlError("batch: {examples: 1.5}"), HasSubstr("expected a whole number"));
  EXPECT_THAT(YamlError("batch: 8"),
              HasSubstr("batch: expected a mapping of fields, such as {examples: ...}, got `8`"));
  EXPECT_THAT(YamlError("batch: [8]"), HasSubstr("got a list"));
  EXPECT_THAT(YamlError("name: {a: b}"), HasSubstr("name: expected a text, got a mapping"));
  EXPECT_THAT(YamlError("optimizer: {learning_rate: fast}"), HasSubstr("expected a finite number"));
  EXPECT_THAT(YamlError("optimizer: {betas: 0.9}"), HasSubstr("expected a list, such as [0.9, 0.999]"));
  EXPECT_THAT(YamlError("optimizer: {betas: [0.9, x]}"), HasSubstr("optimizer.betas[1]: expected a finite number"));
  EXPECT_THAT(YamlError("adapter: {lora: {use_rslora: yes}}"), HasSubstr("expected true or false, got `yes`"));
  EXPECT_THAT(YamlError("objective: kto"), HasSubstr("such as {kto: {}}, got `kto`"));
  EXPECT_THAT(YamlError("export: []"), HasSubstr("an empty list"));
  EXPECT_THAT(YamlError("export: [peft, ]\nname: [x]"), HasSubstr("name: expected a text, got a list"));
}

TEST(SpecFromYaml, EnumsByShortName) {
  EXPECT_EQ(Parse("run: {precision: bf16, device: cuda}").run().precision(), v1::PRECISION_BF16);
  EXPECT_EQ(Parse("run: {precision: PRECISION_BF16}").run().precision(), v1::PRECISION_BF16);
  EXPECT_THAT(YamlError("run: {precision: bf61}"),
              HasSubstr("run.precision: expected one of auto, fp32, bf16, got `bf61`; did you mean bf16?"));
  EXPECT_THAT(YamlError("run: {precision: unspecified}"), HasSubstr("expected one of"));
  EXPECT_THAT(YamlError("run: {precision: int8}"), HasSubstr("expected one of auto, fp32, bf16, got `int8`"));
}

TEST(SpecFromYaml, NaNAndInfinityAreRefused) {
  for (const char* value : {"nan", "NaN", ".nan", "inf", "-inf", ".inf", "1e999", "infinity"}) {
    EXPECT_THAT(YamlError(StrCat("optimizer: {learning_rate: ", value, "}")),
                HasSubstr("optimizer.learning_rate: expected a finite number"))
        << value;
  }
}

TEST(SpecFromYaml, NumberForms) {
  for (const char* value : {"1e-4", "0.0001", "1.0E-4", "+1e-4", "\"1e-4\"", "'1e-4'"}) {
    EXPECT_EQ(Parse(StrCat("optimizer: {learning_rate: ", value, "}")).optimizer().learning_rate(), 1e-4) << value;
  }
}

TEST(SpecFromYaml, RangesCarryThePlace) {
  EXPECT_EQ(YamlError("adapter:\n  lora:\n    r: 0\n"), "job.yaml:3:8: adapter.lora.r: must be at least 1, got 0");
  EXPECT_THAT(YamlError("optimizer: {learning_rate: -1}"), HasSubstr("must be at least 0, got -1"));
  EXPECT_THAT(YamlError("optimizer: {betas: [0.9, 1]}"), HasSubstr("optimizer.betas[1]: must be below 1, got 1"));
  EXPECT_THAT(YamlError("optimizer: {eps: 0}"), HasSubstr("must be above 0, got 0"));
  EXPECT_THAT(YamlError("adapter: {lora: {lora_dropout: 0.1}}"), HasSubstr("must be 0, got 0.1"));
  EXPECT_THAT(YamlError("schedule: {warmup_ratio: 1.5}"), HasSubstr("must be at most 1, got 1.5"));
}

TEST(SpecFromYaml, Sizes) {
  const auto budget = [](std::string_view text) {
    return Parse(StrCat("memory: {vram_budget: ", text, "}")).memory().vram_budget();
  };
  EXPECT_EQ(budget("1KiB"), 1024u);
  EXPECT_EQ(budget("500MB"), 500000000u);
  EXPECT_EQ(budget("1.5 GiB"), uint64_t{3} << 29);
  EXPECT_EQ(budget("2GB"), 2000000000u);
  EXPECT_EQ(budget("7MiB"), uint64_t{7} << 20);
  EXPECT_EQ(budget("3KB"), 3000u);
  EXPECT_EQ(budget("4096"), 4096u);
  EXPECT_EQ(budget("\"20GiB\""), uint64_t{20} << 30);
  for (const char* bad : {"20gib", "GiB", "-1GiB", "0.3KiB", "1e30GiB", "20 Gi", "0", "nanGiB"}) {
    YamlError(StrCat("memory: {vram_budget: ", bad, "}"));
  }
  YamlError("run: {max_steps: 1KiB}");
}

TEST(SpecFromYaml, NullMeansNotSetExceptForAChoice) {
  const v1::JobSpec spec = Parse("name: ~\nmemory:\nobjective:\n  sft:\nexport: null\n");
  EXPECT_FALSE(spec.has_name());
  EXPECT_FALSE(spec.has_memory());
  EXPECT_TRUE(spec.objective().has_sft());
  EXPECT_EQ(spec.export__size(), 0);
}

TEST(SpecFromYaml, ZeroIsNotUnset) {
  EXPECT_TRUE(Parse("optimizer: {learning_rate: 0}").optimizer().has_learning_rate());
}

TEST(SpecFromYaml, OneTextStandsForAListOfOne) { EXPECT_EQ(Parse("export: merged").export_(0), "merged"); }

TEST(SpecFromYaml, OnlyOneOfAChoice) {
  EXPECT_THAT(YamlError("objective: {sft: {}, kto: {}}"),
              HasSubstr("objective.kto: only one of sft and kto can be given"));
}

TEST(SpecFromYaml, BrokenYamlHasAPlace) {
  EXPECT_THAT(YamlError("name: [a\nbatch: }"), StartsWith("job.yaml:2:"));
  EXPECT_THAT(YamlError("a: b: c"), StartsWith("job.yaml:1:"));
  EXPECT_THAT(YamlError(""), HasSubstr("empty"));
  EXPECT_THAT(YamlError("# nothing\n"), HasSubstr("empty"));
  EXPECT_THAT(YamlError("- a\n"), HasSubstr("expected a mapping"));
  EXPECT_THAT(YamlError("name: a\n---\nname: b\n"), HasSubstr("second document"));
  EXPECT_THAT(YamlError("name: !!python/object:os.system x"), HasSubstr("tags are not supported"));
  EXPECT_THAT(YamlError("{[a]: b}"), HasSubstr("a key must be a plain name"));
  EXPECT_THAT(YamlError("name: \xff"), HasSubstr("not valid UTF-8 at byte 6"));
  EXPECT_THAT(YamlError("name: \"a\\0b\""), HasSubstr("NUL"));
  EXPECT_THAT(YamlError(std::string_view("name: a\0b", 9)), HasSubstr("NUL character at byte 7"));
  EXPECT_THAT(YamlError("a: *a"), StartsWith("job.yaml:1:"));
}

TEST(SpecFromYaml, DepthSizeAndAliasesAreBounded) {
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += "{a: ";
  EXPECT_THAT(YamlError(deep), HasSubstr("nested deeper than 16 levels"));
  EXPECT_THAT(YamlError(std::string(100000, '[')), HasSubstr("nested deeper"));
  EXPECT_THAT(YamlError("name: " + std::string(2 << 20, 'x')), HasSubstr("at most 1048576"));
  EXPECT_THAT(YamlError("name: " + std::string(5000, 'x')), HasSubstr("too long: 5000 bytes"));
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    bomb += StrCat("a", i, ": &a", i, " [");
    for (int k = 0; k < 10; ++k) bomb += StrCat(k > 0 ? ", " : "", "*a", i - 1);
    bomb += "]\n";
  }
  EXPECT_THAT(YamlError(bomb), HasSubstr("more than 10000 values"));
}

TEST(SpecFromYaml, AnchorsWork) {
  const v1::JobSpec spec = Parse("run: {save_steps: &n 24, eval_steps: *n}");
  EXPECT_EQ(spec.run().eval_steps(), 24u);
}

TEST(SpecFromYaml, PositionsLocateLaterErrors) {
  SpecPositions positions;
  const auto spec =
      SpecFromYaml("model: {source: m.gguf}\nobjective: {kto: }\nbatch:\n  examples: 1\n", "job.yaml", &positions);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(MessageOf(positions.Locate(FieldError("batch.examples", "no"))), "job.yaml:4:13: batch.examples: no");
  EXPECT_EQ(MessageOf(positions.Locate(FieldError("objective.kto.beta", "no"))),
            "job.yaml:2:13: objective.kto.beta: no");
  EXPECT_EQ(MessageOf(positions.Locate(FieldError("optimizer.eps", "no"))), "job.yaml: optimizer.eps: no");
  EXPECT_EQ(FieldOf(positions.Locate(FieldError("batch.examples", "no"))), "batch.examples");
}

TEST(SpecFromYaml, ErrorsCarryTheField) {
  EXPECT_EQ(FieldOf(SpecFromYaml("adapter: {lora: {r: 0}}", "job.yaml").status()), "adapter.lora.r");
  EXPECT_EQ(FieldOf(SpecFromYaml("x: [", "job.yaml").status()), "");
}

TEST(SpecFromJson, StrictAndNamed) {
  EXPECT_TRUE(SpecFromJson(R"({"batch": {"examples": 8}})").ok());
  EXPECT_FALSE(SpecFromJson("batch: {examples: 8}").ok());
  EXPECT_FALSE(SpecFromJson(R"({"name": "a", "name": "b"})").ok());
  EXPECT_EQ(MessageOf(SpecFromJson(R"({"batch": {"examples": true}})").status()),
            "spec: batch.examples: expected a whole number from 0 to 4294967295, got `true`");
  EXPECT_EQ(SpecFromJson(R"({"run": {"seed": 18446744073709551615}})")->run().seed(), UINT64_MAX);
}

TEST(SetField, ScalarsListsAndMessages) {
  v1::JobSpec spec = Parse(kContractJob);
  ASSERT_TRUE(SetField(spec, "optimizer.learning_rate=5e-5").ok());
  ASSERT_TRUE(SetField(spec, "memory.vram_budget=2GiB").ok());
  ASSERT_TRUE(SetField(spec, "export=[peft, gguf:f16]").ok());
  ASSERT_TRUE(SetField(spec, "adapter.lora.target_modules=q_proj,v_proj").ok());
  ASSERT_TRUE(SetField(spec, "data.train=odd: name, with # marks.jsonl").ok());
  ASSERT_TRUE(SetField(spec, "run={max_steps: 5}").ok());
  EXPECT_EQ(spec.optimizer().learning_rate(), 5e-5);
  EXPECT_EQ(spec.memory().vram_budget(), uint64_t{2} << 30);
  ASSERT_EQ(spec.export__size(), 2);
  EXPECT_EQ(spec.export_(1), "gguf:f16");
  EXPECT_THAT(spec.adapter().lora().target_modules(), ::testing::ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(spec.data().train(), "odd: name, with # marks.jsonl");
  EXPECT_EQ(spec.run().max_steps(), 5u);
  EXPECT_FALSE(spec.run().has_seed()) << "a whole message replaces the old one";
}

TEST(SetField, EmptyUnsets) {
  v1::JobSpec spec = Parse(kContractJob);
  ASSERT_TRUE(SetField(spec, "run.max_steps=").ok());
  ASSERT_TRUE(SetField(spec, "memory=null").ok());
  EXPECT_FALSE(spec.run().has_max_steps());
  EXPECT_FALSE(spec.has_memory());
}

TEST(SetField, ChoicesAreNotSwitchedByAccident) {
  EXPECT_THAT(SetError("objective.sft.x=1"), HasSubstr("the job has objective.kto"));
  v1::JobSpec spec = Parse(kContractJob);
  ASSERT_TRUE(SetField(spec, "objective={sft: {}}").ok());
  EXPECT_TRUE(spec.objective().has_sft());
  v1::JobSpec other = Parse(kContractJob);
  ASSERT_TRUE(SetField(other, "objective.sft={}").ok());
  EXPECT_TRUE(other.objective().has_sft());
}

TEST(SetField, Errors) {
  EXPECT_EQ(SetError("optimizer.learing_rate=1"), "optimizer.learing_rate: unknown field; did you mean learning_rate?");
  EXPECT_EQ(SetError("batch.examples=0"), "batch.examples: must be at least 1, got 0");
  EXPECT_THAT(SetError("batch.examples"), HasSubstr("expected field=value"));
  EXPECT_THAT(SetError("=3"), HasSubstr("expected field=value"));
  EXPECT_THAT(SetError("name.x=1"), HasSubstr("name: has no fields below it"));
  EXPECT_THAT(SetError("export=[a"), HasSubstr("export: not readable as YAML"));
  EXPECT_THAT(SetError("optimizer.learning_rate=nan"), HasSubstr("expected a finite number"));
  EXPECT_THAT(SetError("run={max_steps: x}"), HasSubstr("run.max_steps: expected a whole number"));
}

TEST(Write, YamlAndJsonReadBackEqual) {
  v1::JobSpec spec = Parse(kContractJob);
  for (const std::string_view name :
       {"plain", "null",   "12", "a: b", "- x", "#c", "\"q\"", "tab\there", "ünï",  "true", "a\nb",
        " lead", "trail ", "~",  "[x",   "é😀",  "x:", "\x7f",  "a,b",       "0x10", "NULL", "1e5"}) {
    spec.set_name(std::string(name));
    const auto yaml = SpecFromYaml(SpecToYaml(spec), "back");
    ASSERT_TRUE(yaml.ok()) << yaml.status() << "\n" << SpecToYaml(spec);
    EXPECT_TRUE(SameResolvedSpec(*yaml, spec)) << SpecToYaml(spec);
    const auto json = SpecFromJson(SpecToJson(spec, true));
    ASSERT_TRUE(json.ok()) << json.status();
    EXPECT_TRUE(SameResolvedSpec(*json, spec)) << SpecToJson(spec);
  }
}

TEST(Write, ShortNamesAndPlainNumbers) {
  const std::string json =
      SpecToJson(Parse("run: {precision: bf16}\nmemory: {vram_budget: 20GiB}\nobjective: {sft: }"));
  EXPECT_EQ(json, R"({"objective":{"sft":{}},"run":{"precision":"bf16"},"memory":{"vram_budget":21474836480}})");
  EXPECT_EQ(SpecToYaml(Parse("objective: {sft: }\nexport: [peft, gguf:f16]")),
            "objective:\n  sft: {}\nexport: [peft, gguf:f16]\n");
}

}  // namespace
}  // namespace hone
