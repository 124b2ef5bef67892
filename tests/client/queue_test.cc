// What is pure in the client's newer commands: sweeps, durations, foreign job files, the report's page, contexts.
#include "client/contexts.h"
#include "client/foreign_job.h"
#include "client/job_file.h"
#include "client/job_report.h"
#include "client/matrix.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"
#include "tests/client/cli_harness.h"

namespace hone {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Matrix, EveryCombinationInOrder) {
  const auto all = ExpandMatrix({"optimizer.learning_rate=5e-5,1e-4", "run.seed=1,2"});
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 4u);
  EXPECT_THAT((*all)[1].sets, ElementsAre("optimizer.learning_rate=5e-5", "run.seed=2"));
  EXPECT_EQ((*all)[2].name, "learning_rate=1e-4 seed=1");
  const auto lists = ExpandMatrix({"export=[peft],[peft,merged],\"a,b\""});
  ASSERT_EQ(lists->size(), 3u);
  EXPECT_EQ((*lists)[1].sets[0], "export=[peft,merged]");
  for (const char* bad : {"x", "=1", "a=", "a=1,,2"}) EXPECT_FALSE(ExpandMatrix({bad}).ok()) << bad;
  EXPECT_FALSE(ExpandMatrix(std::vector<std::string>(4, "a=1,2,3,4,5,6,7,8")).ok());
}

TEST(Duration, Units) {
  EXPECT_EQ(*ParseDuration("90"), 90u);
  EXPECT_EQ(*ParseDuration("1.5h"), 5400u);
  EXPECT_EQ(*ParseDuration("2d"), 172800u);
  for (const char* bad : {"", "-1", "0", "1w", "h", "1e300", "nan"}) EXPECT_FALSE(ParseDuration(bad).ok()) << bad;
}

TEST(ForeignJob, AxolotlIsMappedAndNothingIsDroppedSilently) {
  const char* yaml =
      "base_model: ./m\nload_in_4bit: true\nadapter: qlora\nlora_r: 32\nlora_dropout: 0.05\nlora_target_linear: true\n"
      "datasets:\n  - path: d.jsonl\n    type: alpaca\nval_set_size: 0.05\nsequence_len: 2048\nsample_packing: true\n"
      "micro_batch_size: 2\ngradient_accumulation_steps: 4\nnum_epochs: 3\noptimizer: paged_adamw_8bit\n"
      "lr_scheduler: cosine\nlearning_rate: 2e-4\nwarmup_steps: 5\nmax_steps: 50\nbf16: auto\nflash_attention: true\n"
      "deepspeed: zero3.json\nunheard_of: 7\n";
  const auto job = ReadForeignJob(yaml, "a.yaml", "");
  ASSERT_TRUE(job.ok()) << job.status();
  const v1::JobSpec& spec = job->spec;
  EXPECT_EQ(spec.model().quantization(), v1::QUANTIZATION_NF4);
  EXPECT_EQ(spec.adapter().lora().r(), 32u);
  EXPECT_EQ(spec.batch().examples(), 8u);
  EXPECT_EQ(spec.data().max_length(), 2048u);
  EXPECT_EQ(spec.optimizer().name(), v1::OPTIMIZER_NAME_ADAMW_8BIT);
  EXPECT_DOUBLE_EQ(spec.schedule().warmup_ratio(), 0.1);
  EXPECT_TRUE(spec.objective().has_sft());
  EXPECT_THAT(job->not_mapped, Contains(HasSubstr("lora_dropout: 0.05")));
  EXPECT_THAT(job->not_mapped, Contains(HasSubstr("deepspeed")));
  EXPECT_THAT(job->not_mapped, Contains(HasSubstr("unheard_of: 7")));
  EXPECT_THAT(job->not_needed, Contains(HasSubstr("flash_attention")));
  // What comes out is a job file.
  const std::string text = ForeignJobYaml(*job, "a.yaml");
  EXPECT_TRUE(SpecFromYaml(text, "out").ok()) << text;
  EXPECT_THAT(text, HasSubstr("#   deepspeed: zero3.json"));
}

TEST(ForeignJob, LlamaFactoryKto) {
  const auto job = ReadForeignJob(
      "model_name_or_path: Qwen/Qwen2.5-0.5B\nstage: kto\nfinetuning_type: lora\nlora_rank: 8\nlora_target: "
      "q_proj,v_proj\n"
      "dataset: kto_en\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nlearning_rate: 1.0e-4\n"
      "pref_beta: 0.2\nkto_chosen_weight: 2\n",
      "l.yaml", "");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->format, ForeignFormat::kLlamaFactory);
  EXPECT_DOUBLE_EQ(job->spec.objective().kto().beta(), 0.2);
  EXPECT_DOUBLE_EQ(job->spec.objective().kto().desirable_weight(), 2);
  EXPECT_DOUBLE_EQ(job->spec.adapter().lora().lora_alpha(), 16);
  EXPECT_EQ(job->spec.adapter().lora().target_modules_size(), 2);
  EXPECT_EQ(job->spec.batch().examples(), 8u);
  EXPECT_THAT(job->not_mapped, Contains(HasSubstr("nothing is downloaded")));
  EXPECT_FALSE(ReadForeignJob("a: 1\n", "x", "").ok());
  EXPECT_FALSE(ReadForeignJob("- a\n", "x", "axolotl").ok());
  EXPECT_FALSE(ReadForeignJob("a: [", "x", "").ok());
  const auto dpo = ReadForeignJob("base_model: ./m\nrl: dpo\n", "x", "");
  EXPECT_THAT(dpo->not_mapped, Contains(HasSubstr("rl: dpo")));
}

// What keeps a page from being read as it was meant: elements closed in the order in which they were opened, quotes in
// pairs, & only as an entity. "" if it is well formed, else where it is not.
std::string Malformed(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = 0; at < html.size(); ++at) {
    if (html[at] == '&' && html.find(';', at) > at + 7) return "a bare & at " + html.substr(at, 40);
    if (html[at] == '>') return "a bare > before " + html.substr(at, 40);
    if (html[at] != '<') continue;
    size_t end = at + 1;
    for (char quote = 0; end < html.size() && (quote != 0 || html[end] != '>'); ++end) {
      if (quote == 0 ? html[end] == '"' : html[end] == quote) quote = quote == 0 ? html[end] : 0;
      if (quote == 0 && html[end] == '<') return "a tag within " + html.substr(at, 40);
    }
    if (end >= html.size()) return "a tag without an end: " + html.substr(at, 40);
    const std::string tag = html.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (name == "style") {
      end = html.find("</style>", end) + 7;
    } else if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return "closed but not open: " + tag;
      open.pop_back();
    } else if (tag[0] != '!' && tag.back() != '/' && name != "meta") {
      open.push_back(name);
    }
    at = end;
  }
  return open.empty() ? "" : "never closed: " + open.back();
}

TEST(JobFile, AMessageNamesAnUploadAsItIsCalledHere) {
  JobFile file;
  file.uploaded["abc"] = "rows.jsonl";
  const absl::Status status =
      NameUploads(file, FieldError("data.train", StrCat("/var/lib/hone/blobs/abc: row 3 (line 3): no label; ",
                                                        "\"/var/lib/hone/blobs/abc\" and /blobs/other stay")));
  EXPECT_EQ(status.message(), "data.train: rows.jsonl: row 3 (line 3): no label; \"rows.jsonl\" and /blobs/other stay");
  EXPECT_EQ(FieldOf(status), "data.train");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
}

TEST(JobReport, AnEvaluationIsNoStep) {
  const auto steps = ParseSteps(
      "{\"step\": 1, \"steps\": 9, \"loss\": 5, \"learning_rate\": 1e-4}\n"
      "{\"step\": 2, \"steps\": 9, \"loss\": 4, \"learning_rate\": 1e-4, \"kl\": 0.5}\n"
      "{\"step\": 2, \"loss\": 3, \"perplexity\": 20, \"examples\": 14}\n"
      "{\"step\": 1, \"steps\": 9, \"loss\": 6, \"learning_rate\": 1e-4}\nbroken {");
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].loss(), 6);  // a later attempt's
  EXPECT_EQ(steps[1].loss(), 4);
  EXPECT_EQ(steps[1].kl(), 0.5);
}

TEST(JobReport, TheCheckOfItsFormCanFail) {
  EXPECT_EQ(Malformed("<!doctype html><a b=\"x>y\"><p>&amp; c</p><br/></a>"), "");
  for (const char* wrong : {"<a><b></a></b>", "<a>", "a > b", "a & b and more", "<a b=\"x></a>", "<a <b>"}) {
    EXPECT_NE(Malformed(wrong), "") << wrong;
  }
}

TEST(JobReport, OnePageThatLoadsNothingAndEscapesEverything) {
  ReportFacts facts;
  facts.job.set_id("abc");
  facts.job.set_display_name("<script>alert(1)</script>");
  facts.job.set_state(v1::SUCCEEDED);
  facts.job.mutable_plan()->mutable_bytes()->set_total(1 << 20);
  facts.job.mutable_plan()->set_tokens_per_second(100);
  for (int i = 1; i <= 2000; ++i) {
    v1::StepRecord& step = facts.steps.emplace_back();
    step.set_step(static_cast<uint64_t>(i));
    step.set_loss(i == 7 ? NAN : 1.0 / i);
    step.set_tokens(100);
    step.set_seconds(1);
    step.set_rewards_margins(0.1 * i);
  }
  facts.samples.push_back({"q & a", "base <b>", "adapter"});
  facts.data_report = "{\"rows\": 3}";
  const std::string html = JobReportHtml(facts);
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(html, HasSubstr("base &lt;b&gt;"));
  for (const char* outside : {"http://", "https://", "src=", "href=", "@import", "url("}) {
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  }
  EXPECT_EQ(Malformed(html), "");
  EXPECT_THAT(html, HasSubstr("default-src 'none'"));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_LT(html.size(), 200000u);  // a long run stays a small page
  // Axes have round figures, and steps are whole.
  const std::string axes = CurvesSvg({{"curve", "#000", {{1, 6.1e-6}, {12, 3.79}}}}, "x", "y");
  EXPECT_EQ(Malformed(axes), "");
  for (const char* tick : {">0<", ">1<", ">4<", ">2<", ">12<"}) EXPECT_THAT(axes, HasSubstr(tick));
  for (const char* crooked : {"e-06<", "3.75<", "6.5<"}) EXPECT_THAT(axes, Not(HasSubstr(crooked)));
  for (const double value : {0.0, 1e-30, -5e12}) {
    EXPECT_THAT(CurvesSvg({{"one", "#000", {{3, value}}}}, "x", "y"), Not(HasSubstr("nan"))) << value;
  }
  // Nothing at all is no crash.
  EXPECT_EQ(Malformed(JobReportHtml(ReportFacts())), "");
  EXPECT_THAT(JobReportHtml(ReportFacts()), HasSubstr("</html>"));
  EXPECT_THAT(CurvesSvg({{"flat", "#000", {{1, 2}, {2, 2}}}}, "x", "y"), HasSubstr("polyline"));
}

TEST(Contexts, AreKeptAndChecked) {
  TemporaryFolder folder;
  Environment environment;
  environment.home = folder.path();
  EXPECT_TRUE(LoadContexts(environment)->all.empty());
  Contexts contexts;
  contexts.current = "lab";
  contexts.all["lab"] = {"", "lab:1", "/ca", "/c", "/k", ""};
  contexts.all["box"] = {"/s", "", "", "", "", ""};
  ASSERT_TRUE(SaveContexts(environment, contexts).ok());
  const auto back = LoadContexts(environment);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->current, "lab");
  EXPECT_EQ(back->all.at("lab").address, "lab:1");
  EXPECT_EQ(back->all.at("box").socket, "/s");
  folder.Write(".config/hone/contexts.json", "{nonsense");
  EXPECT_THAT(std::string(LoadContexts(environment).status().message()), HasSubstr("contexts.json"));
  const auto message = [&](const Target& target) {
    return std::string(CheckTarget(environment, target).status().message());
  };
  EXPECT_THAT(message({}), HasSubstr("--address"));
  EXPECT_THAT(message({"", "lab:1", "", "", "", ""}), HasSubstr("--ca"));
  EXPECT_THAT(message({"", "lab:1", "ca", "", "", ""}), HasSubstr("--token-file"));
  EXPECT_THAT(message({"", "lab:1", "ca", "c", "", ""}), HasSubstr("go together"));
  EXPECT_TRUE(CheckTarget(environment, {"", "lab:1", "ca", "", "", "t"}).ok());
}

}  // namespace
}  // namespace hone
