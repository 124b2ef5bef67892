// Chat rows, ids rows and truncation, with a tokenizer of bytes so that every expectation can be read.
#include "engine/data/examples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "engine/data/dataset.h"

namespace hone {
namespace {

using testing::HasSubstr;

class ExamplesTest : public testing::Test {
 protected:
  ExamplesTest()
      : tokenizer_(Tokenizer::Bytes(256)),
        chat_(*ChatTemplate::Parse("{% for m in messages %}{{ m.role[0] }}:{{ m.content }}#\n{% endfor %}{% if "
                                   "add_generation_prompt %}a:{% endif %}",
                                   {"", "", {"#"}})),
        tools_{tokenizer_.get(), chat_.get()} {}

  Row RowOf(const std::string& json) {
    auto rows = ParseRows(json, "test");
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.ok() ? (*rows)[0] : Row{};
  }

  // The text with trained tokens in brackets.
  static std::string Marked(const Example& example) {
    std::string out;
    for (size_t i = 0; i < example.ids.size(); ++i) {
      const bool before = i > 0 && example.trained[i - 1], now = example.trained[i];
      if (now && !before) out += '[';
      if (!now && before) out += ']';
      out += static_cast<char>(example.ids[i]);
    }
    return out + (example.trained.back() ? "]" : "");
  }
  std::string Sft(const std::string& json, int32_t max_length = 1024) {
    auto example = MakeSftExample(RowOf(json), tools_, {DataObjective::kSft, max_length, 512});
    return example.ok() ? Marked(*example) : std::string(example.status().message());
  }
  std::string Kto(const std::string& json, int32_t max_length = 1024, int32_t max_prompt_length = 512) {
    auto parts = MakeKtoParts(RowOf(json), tools_);
    if (!parts.ok()) return std::string(parts.status().message());
    auto example = MakeKtoExample(*parts, {DataObjective::kKto, max_length, max_prompt_length});
    return example.ok() ? Marked(*example) : std::string(example.status().message());
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
  TextTools tools_;
};

constexpr char kChat[] =
    R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"one"},{"role":"user","content":"r"},{"role":"assistant","content":"two"}],"label":true})";
constexpr char kPair[] =
    R"({"prompt":[{"role":"user","content":"q"},{"role":"assistant","content":"one"},{"role":"user","content":"r"}],"completion":[{"role":"assistant","content":"two"}],"label":false})";

TEST_F(ExamplesTest, SftChat) {
  EXPECT_EQ(Sft(kChat), "u:q#\na:[one#]\nu:r#\na:[two#]\n");
  EXPECT_EQ(Sft(kPair), "u:q#\na:one#\nu:r#\na:[two#]\n");
}

TEST_F(ExamplesTest, KtoChatEndsWithTheEndOfTurn) {
  EXPECT_EQ(Kto(kChat), "u:q#\na:one#\nu:r#\na:[two#]");
  EXPECT_EQ(Kto(kPair), "u:q#\na:one#\nu:r#\na:[two#]");
}

TEST_F(ExamplesTest, KtoChatOfSeveralCompletionMessages) {
  EXPECT_EQ(
      Kto(R"({"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"x"},{"role":"tool","content":"t"},{"role":"assistant","content":"y"}],"label":true})"),
      "u:q#\na:[x#]\nt:t#\na:[y#]");
}

TEST_F(ExamplesTest, EmptyAnswerTrainsItsEnd) {
  EXPECT_EQ(
      Kto(R"({"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":""}],"label":true})"),
      "u:q#\na:[#]");
}

TEST_F(ExamplesTest, IdsRows) {
  EXPECT_EQ(Sft(R"({"ids":[97,98,99,100],"trained":[[1,2],[3,4]]})"), "a[b]c[d]");
  EXPECT_EQ(Sft(R"({"prompt_ids":[97,98],"completion_ids":[99]})"), "ab[c]");
  EXPECT_EQ(Kto(R"({"prompt_ids":[97,98],"completion_ids":[99],"label":true})"), "ab[c]");
  EXPECT_EQ(Kto(R"({"prompt_ids":[],"completion_ids":[97,98],"label":true})"),
            "a[b]");  // nothing predicts the first id
}

TEST_F(ExamplesTest, SftCutsTheRight) {
  EXPECT_EQ(Sft(kChat, 9), "u:q#\na:[on]");
  auto example = MakeSftExample(RowOf(kChat), tools_, {DataObjective::kSft, 9, 512});
  ASSERT_TRUE(example.ok());
  EXPECT_EQ(example->cut_completion, 6u);  // e# and two#
  EXPECT_EQ(example->cut_prompt, 9u);
  EXPECT_EQ(example->prompt_length, 7);
  EXPECT_THAT(Sft(kChat, 7), HasSubstr("row 1 (line 1): no supervised token is left after the cut to max_length 7"));
}

TEST_F(ExamplesTest, KtoCutsThePromptFirstThenTheAnswer) {
  const char* row = R"({"prompt_ids":[97,98,99,100,101],"completion_ids":[49,50,51,52,53],"label":true})";
  EXPECT_EQ(Kto(row, 10, 2), "abcde[12345]");
  EXPECT_EQ(Kto(row, 9, 2), "de[12345]");
  EXPECT_EQ(Kto(row, 7, 2), "de[12345]");
  EXPECT_EQ(Kto(row, 6, 2), "de[1234]");
  EXPECT_EQ(Kto(row, 3, 2), "de[1]");
  EXPECT_THAT(Kto(row, 3, 3), HasSubstr("data.max_prompt_length 3 leaves no room for an answer"));
  EXPECT_EQ(Kto(row, 10, 512), "abcde[12345]");  // a limit that is not needed does no harm
}

TEST_F(ExamplesTest, Errors) {
  EXPECT_THAT(Kto(R"({"prompt":"a","completion":"b"})"), HasSubstr("row 1 (line 1): KTO needs a label"));
  EXPECT_THAT(Kto(R"({"text":"a","label":true})"), HasSubstr("a 'text' row has none"));
  EXPECT_THAT(Kto(R"({"prompt":"a","completion":"","label":true})"),
              HasSubstr("no supervised token: the completion is empty"));
  EXPECT_THAT(Kto(R"({"messages":[{"role":"user","content":"q"}],"label":true})"), HasSubstr("no supervised token"));
  EXPECT_THAT(Sft(R"({"messages":[{"role":"user","content":"q"}]})"), HasSubstr("no supervised token"));
  EXPECT_THAT(Sft(R"({"text":""})"), HasSubstr("row 1 (line 1): it is empty"));
  EXPECT_THAT(Sft(R"({"text":"a"})"), HasSubstr("no supervised token"));
  EXPECT_THAT(Sft(R"({"ids":[1,2],"trained":[]})"), HasSubstr("no supervised token"));
  tools_.chat_template = nullptr;
  EXPECT_THAT(Sft(kChat), HasSubstr("message rows need a chat template"));
  tools_.tokenizer = nullptr;
  EXPECT_THAT(Sft(R"({"text":"abc"})"), HasSubstr("the model has no tokenizer"));
  EXPECT_EQ(Sft(R"({"ids":[97,98],"trained":[[0,2]]})"), "a[b]");
}

TEST_F(ExamplesTest, DatasetChecksTheVocabularyAndSplits) {
  auto rows = ParseRows("{\"ids\":[1,2],\"trained\":[[1,2]]}\n{\"ids\":[1,300],\"trained\":[[1,2]]}", "test");
  ASSERT_TRUE(rows.ok());
  DataOptions options;
  auto bad = BuildDataset(*rows, tools_, options, 256);
  EXPECT_THAT(std::string(bad.status().message()),
              HasSubstr("row 2: token id 300 is outside the model's vocabulary of 256"));
  options.eval_fraction = 0.5;
  auto split = BuildTrainEval(*rows, tools_, options, 512);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->train.examples.size(), 1u);
  EXPECT_EQ(split->eval.examples.size(), 1u);
  EXPECT_NE(DatasetDigest(split->train), DatasetDigest(split->eval));
  EXPECT_EQ(split->train.longest(), 2);
}

// With a real tokenizer: what is trained decodes to the answer and its end.
TEST(ExamplesReal, Qwen2Chat) {
  const char* data = std::getenv("HONE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  const auto read = [&](const std::string& path) {
    std::ifstream in(std::string(data) + path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  };
  auto tokenizer =
      Tokenizer::FromJson(read("/tokenizers/qwen2/tokenizer.json"), read("/tokenizers/qwen2/tokenizer_config.json"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto chat = ChatTemplate::Parse(read("/templates/Qwen-Qwen2.5-7B-Instruct.jinja"),
                                  {"", "<|im_end|>", {"<|im_start|>", "<|im_end|>"}});
  ASSERT_TRUE(chat.ok()) << chat.status();
  auto rows = ReadRows(std::string(data) + "/datasets/kto_en_demo.json");
  ASSERT_TRUE(rows.ok()) << rows.status();
  DataOptions options;
  options.example = {DataObjective::kKto, 1024, 512};
  auto built = BuildDataset(*rows, {tokenizer->get(), chat->get()}, options, (*tokenizer)->vocab_size());
  ASSERT_TRUE(built.ok()) << built.status();
  int whole = 0;
  for (size_t i = 0; i < rows->size(); ++i) {
    const Example& example = built->examples[i];
    EXPECT_LE(example.length(), 1024);
    EXPECT_LE(built->kl[i].length(), 1024);
    if (example.cut_prompt + example.cut_completion > 0) continue;
    const std::span<const int32_t> answer(example.ids.data() + example.prompt_length,
                                          example.ids.size() - static_cast<size_t>(example.prompt_length));
    const std::string content = (*rows)[i].messages.back()["content"];
    EXPECT_EQ((*tokenizer)->Decode(answer), content + "<|im_end|>") << i;
    ++whole;
  }
  EXPECT_GT(whole, 200);
}

}  // namespace
}  // namespace hone
