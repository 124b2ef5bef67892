// Rendered text equals transformers' jinja2 environment (tests/golden/make_chat_template.py).
#include <gtest/gtest.h>

#include "engine/text/chat_template.h"
#include "proto/base/sha256.h"
#include "tests/text/chat_template_test_data.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

// raise_exception's message must come through; other errors need only be errors.
void ExpectSame(const Json& expected, const absl::StatusOr<RenderedChat>& rendered, const std::string& what) {
  if (expected.contains("text")) {
    ASSERT_TRUE(rendered.ok()) << what << ": " << rendered.status();
    EXPECT_EQ(rendered->text, expected["text"].get<std::string>()) << what;
    return;
  }
  const std::string error = expected["error"];
  ASSERT_FALSE(rendered.ok()) << what << ": expected " << error << ", got text:\n" << rendered->text;
  const std::string prefix = "TemplateError: ";
  if (error.starts_with(prefix)) {
    EXPECT_NE(std::string(rendered.status().message()).find(error.substr(prefix.size())), std::string::npos)
        << rendered.status();
  }
  EXPECT_NE(std::string(rendered.status().message()).find("line "), std::string::npos) << rendered.status();
}

class ModelTemplate : public testing::TestWithParam<const char*> {};

TEST_P(ModelTemplate, RendersAsJinja2) {
  const Json golden = ReadGolden("chat_template_models.json");
  const Json& entry = golden["templates"][GetParam()];
  const std::string source = GoldenTemplateSource(entry);
  if (source.empty()) GTEST_SKIP() << "HONE_TEST_DATA is not set: " << entry["file"] << " is not here";
  ASSERT_EQ(Sha256Hex(source), entry["sha256"].get<std::string>()) << "another version of the template";
  auto parsed = ChatTemplate::Parse(source, GoldenTokens(entry));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  int rendered = 0;
  for (const auto& [name, expected] : entry["rendered"].items()) {
    RenderRequest request = GoldenRequest(golden["conversations"][name], entry["variables"], golden["date"]);
    if (request.tools.is_null()) request.tools = entry["tools"];
    ExpectSame(expected, (*parsed)->Render(request), name);
    rendered += expected.contains("text");
  }
  EXPECT_GE(rendered, 8);
}

INSTANTIATE_TEST_SUITE_P(All, ModelTemplate,
                         testing::Values("smollm2", "qwen2.5", "llama-3.1", "qwen3", "mistral-nemo", "smollm3",
                                         "phi-3.5", "gemma-2", "granite-3.3", "hermes-3", "gpt-oss"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

TEST(ChatTemplateGolden, SnippetsRenderAsJinja2) {
  const Json golden = ReadGolden("chat_template_snippets.json");
  ASSERT_GT(golden["snippets"].size(), 200u);
  for (const Json& snippet : golden["snippets"]) {
    const std::string source = snippet["source"];
    auto parsed = ChatTemplate::Parse(source, {"<s>", "</s>", {}});
    if (!parsed.ok()) {
      EXPECT_TRUE(snippet.contains("error")) << source << "\n" << parsed.status();
      continue;
    }
    const Json conversation = {{"messages", Json::array()}};
    ExpectSame(snippet, (*parsed)->Render(GoldenRequest(conversation, golden["variables"], golden["date"])), source);
  }
}

}  // namespace
}  // namespace hone
