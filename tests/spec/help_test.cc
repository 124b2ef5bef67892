// Help text, the reference page, and that spec.proto describes itself completely.
#include <functional>

#include "hone/v1/plan.pb.h"
#include "hone/v1/worker.pb.h"
#include "proto/base/file.h"
#include "proto/spec/message_json.h"
#include "tests/spec/spec_testing.h"

namespace hone {
namespace {

using ::testing::HasSubstr;

TEST(SpecHelp, OneField) {
  const std::string help = *SpecHelp("optimizer.learning_rate");
  EXPECT_THAT(help, HasSubstr("optimizer.learning_rate  (number)"));
  EXPECT_THAT(help, HasSubstr("required"));
  EXPECT_THAT(help, HasSubstr("range: at least 0"));
  EXPECT_THAT(*SpecHelp("run.precision"), HasSubstr("bf16: bfloat16 with fp32 accumulation."));
  EXPECT_THAT(*SpecHelp("memory.vram_budget"), HasSubstr("KiB"));
  EXPECT_THAT(*SpecHelp("optimizer.betas"), HasSubstr("list of numbers"));
}

TEST(SpecHelp, OutlineAndMistakes) {
  const std::string outline = *SpecHelp("");
  EXPECT_THAT(outline, HasSubstr("    kl_group_size: batch.examples"));
  EXPECT_THAT(*SpecHelp("adapter"), HasSubstr("lora_alpha"));
  EXPECT_EQ(MessageOf(SpecHelp("optimiser").status()), "optimiser: unknown field; did you mean optimizer?");
  EXPECT_THAT(MessageOf(SpecHelp("name.x").status()), HasSubstr("no fields below"));
}

TEST(SpecReference, IsCurrent) {
  const auto committed = ReadFile(HONE_SOURCE "/proto/spec/REFERENCE.md");
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(*committed, SpecReferenceMarkdown()) << "run: hone spec --markdown > proto/spec/REFERENCE.md";
}

TEST(SpecProto, EveryFieldAndChoiceHasHelpAndAWorkingDefault) {
  std::function<void(const google::protobuf::Descriptor&)> visit = [&](const google::protobuf::Descriptor& type) {
    for (int i = 0; i < type.field_count(); ++i) {
      const auto& field = *type.field(i);
      const v1::FieldInfo info = field.options().GetExtension(v1::field);
      EXPECT_FALSE(info.help().empty()) << field.full_name();
      if (field.message_type() != nullptr) {
        visit(*field.message_type());
        continue;
      }
      EXPECT_TRUE(field.is_repeated() || field.has_presence()) << field.full_name() << ": 0 must not mean unset";
      EXPECT_TRUE(info.required() || !info.default_value().empty() || !info.default_note().empty())
          << field.full_name();
      if (field.enum_type() == nullptr) continue;
      for (int k = 0; k < field.enum_type()->value_count(); ++k) {
        const auto& value = *field.enum_type()->value(k);
        EXPECT_TRUE(value.number() == 0 || !value.options().GetExtension(v1::value).help().empty())
            << value.full_name();
      }
    }
  };
  visit(*v1::JobSpec::descriptor());
}

TEST(MessageToJson, NumbersStayNumbersAndFalseIsShown) {
  v1::Plan plan;
  plan.set_seconds(2.5);
  plan.mutable_bytes()->set_total(uint64_t{1} << 40);
  const std::string json = MessageToJson(plan);
  EXPECT_THAT(json, HasSubstr("\"fits\":false"));
  EXPECT_THAT(json, HasSubstr("\"total\":1099511627776"));
  EXPECT_THAT(json, HasSubstr("\"changes\":[]"));
  EXPECT_THAT(json, HasSubstr("\"seconds\":2.5"));
  v1::Progress progress;
  progress.set_phase(v1::PHASE_TRAINING);
  EXPECT_THAT(MessageToJson(progress), HasSubstr("\"phase\":\"training\""));
  v1::StepRecord step;
  EXPECT_THAT(MessageToJson(step), ::testing::Not(HasSubstr("kl")));
  step.set_kl(0);
  EXPECT_THAT(MessageToJson(step), HasSubstr("\"kl\":0.0"));
}

}  // namespace
}  // namespace hone
