// Which bytes of a rendering are trained; every expectation here was written by hand.
#include <gtest/gtest.h>

#include "tests/text/chat_template_test_data.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

Json Messages(std::initializer_list<std::pair<const char*, const char*>> turns) {
  Json messages = Json::array();
  for (const auto& [role, content] : turns) messages.push_back({{"role", role}, {"content", content}});
  return messages;
}

std::string RenderMarked(std::string_view source, const Json& messages, const Json& variables = nullptr) {
  auto chat = RenderSource(source, messages, variables);
  return chat.ok() ? Marked(*chat) : std::string(chat.status().message());
}

std::string RenderModel(const std::string& name, const Json& messages, const Json& tools = nullptr) {
  const Json entry = ReadGolden("chat_template_models.json")["templates"][name];
  const std::string source = GoldenTemplateSource(entry);
  if (source.empty()) return "";
  auto parsed = ChatTemplate::Parse(source, GoldenTokens(entry));
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  RenderRequest request;
  request.messages = messages;
  request.tools = tools;
  auto chat = (*parsed)->Render(request);
  return chat.ok() ? Marked(*chat) : std::string(chat.status().message());
}

TEST(ChatTemplateTrained, SmolLM2) {
  EXPECT_EQ(
      RenderModel(
          "smollm2",
          Messages(
              {{"system", "S"}, {"user", "assistant X"}, {"assistant", "X"}, {"user", "X"}, {"assistant", "Y\n"}})),
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nassistant X<|im_end|>\n<|im_start|>assistant\n⟦X<|im_end|>⟧\n"
      "<|im_start|>user\nX<|im_end|>\n<|im_start|>assistant\n⟦Y\n<|im_end|>⟧\n");
}

TEST(ChatTemplateTrained, EmptyAnswerStillTrainsItsEnd) {
  EXPECT_EQ(RenderModel("smollm2", Messages({{"system", "S"}, {"user", "U"}, {"assistant", ""}})),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n⟦<|im_end|>⟧\n");
}

TEST(ChatTemplateTrained, Llama31TrimsTheContent) {
  const std::string text = RenderModel(
      "llama-3.1", Messages({{"user", "U"}, {"assistant", "  A b \n"}, {"user", "V"}, {"assistant", " \n "}}));
  if (text.empty()) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  EXPECT_EQ(text,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A "
            "b<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦<|eot_id|>⟧");
}

TEST(ChatTemplateTrained, Qwen3SplitsThinking) {
  const std::string text = RenderModel("qwen3", Messages({{"user", "U"}, {"assistant", "<think>\nR\n</think>\n\nA"}}));
  if (text.empty()) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  // "<think>\n" is the template's own here; what follows is the content's pieces and the template between them.
  EXPECT_EQ(text, "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\n⟦R\n</think>\n\nA<|im_end|>⟧\n");
}

TEST(ChatTemplateTrained, Phi35) {
  const std::string text = RenderModel("phi-3.5", Messages({{"user", "U"}, {"assistant", "A"}}));
  if (text.empty()) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  EXPECT_EQ(text, "<|user|>\nU<|end|>\n<|assistant|>\n⟦A<|end|>⟧\n<|endoftext|>");
}

TEST(ChatTemplateTrained, Gemma2EndsAtEndOfTurn) {
  const std::string text = RenderModel("gemma-2", Messages({{"user", "U"}, {"assistant", " A "}}));
  if (text.empty()) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  EXPECT_EQ(text, "<bos><start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\n⟦A<end_of_turn>⟧\n");
}

TEST(ChatTemplateTrained, MistralNemoEndsWithEos) {
  const std::string text =
      RenderModel("mistral-nemo", Messages({{"user", "U"}, {"assistant", "A"}, {"user", "V"}, {"assistant", "B"}}));
  if (text.empty()) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  EXPECT_EQ(text, "<s>[INST]U[/INST]⟦A</s>⟧[INST]V[/INST]⟦B</s>⟧");
}

TEST(ChatTemplateTrained, ToolCallsAreNotContent) {
  Json messages = Messages({{"user", "U"}, {"assistant", "A"}});
  messages[1]["tool_calls"] =
      Json::array({{{"type", "function"}, {"function", {{"name", "f"}, {"arguments", Json::object()}}}}});
  const std::string text = RenderModel("qwen2.5", messages);
  if (text.empty()) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  EXPECT_NE(
      text.find(
          "<|im_start|>assistant\n⟦A⟧\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>\n"),
      std::string::npos)
      << text;
}

// Strings that equal the assistant's are not the assistant's.
TEST(ChatTemplateTrained, EqualTextOfOthersIsNotTrained) {
  EXPECT_EQ(RenderMarked("{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}x",
                         Messages({{"user", "x"}, {"assistant", "x"}, {"user", "x"}})),
            "user:x<end>assistant:⟦x<end>⟧user:x<end>x");
}

TEST(ChatTemplateTrained, SurvivesStringOperations) {
  const Json messages = Messages({{"user", "u"}, {"assistant", "  one, TWO three  "}});
  const std::pair<const char*, const char*> cases[] = {
      {"{{ c | trim }}", "⟦one, TWO three⟧"},
      {"{{ c[2:5] }}|{{ c[0] }}", "⟦one| ⟧"},
      {"{{ c.split(',')[1] }}", "⟦ TWO three  ⟧"},
      {"{{ c.split() | join('-') }}", "⟦one,-TWO-three⟧"},
      {"{{ c.replace('TWO', 'zwei') }}", "⟦  one, zwei three  ⟧"},
      {"{{ c | trim | upper }}/{{ c | trim | title }}", "⟦ONE, TWO THREE/One, Two Three⟧"},
      {"{{ '[' ~ c.strip() ~ ']' }}", "[⟦one, TWO three⟧]"},
      {"{{ 'a' + c.strip() + 'b' }}<end>c", "a⟦one, TWO threeb<end>⟧c"},
      {"{% set x %}>{{ c | trim }}{% endset %}{{ x }}", ">⟦one, TWO three⟧"},
      {"{% macro m(v) %}({{ v | trim }}){% endmacro %}{{ m(c) }}", "(⟦one, TWO three⟧)"},
      {"{% filter trim %}{{ c }}{% endfilter %}", "⟦one, TWO three⟧"},
      {"{{ '%s' % c.strip() }}|{{ '{}'.format(c.strip()) }}", "⟦one, TWO three|one, TWO three⟧"},
      {"{{ [c.strip()] | first }}|{{ {'k': c.strip()}.k }}", "⟦one, TWO three|one, TWO three⟧"},
      {"{{ c.strip() | tojson }}", "\"⟦one, TWO three⟧\""},
      {"{{ c.strip()[::-1] }}", "⟦eerht OWT ,eno⟧"},
      {"{{ c.strip() | list | join }}", "⟦one, TWO three⟧"},
      {"{{ c.strip() | indent }}", "⟦one, TWO three⟧"},
      {"{% set ns = namespace(x='') %}{% set ns.x = ns.x + c.strip() %}{{ ns.x }}", "⟦one, TWO three⟧"},
      {"{% generation %}{{ c.strip() }}{% endgeneration %}", "⟦one, TWO three⟧"},
  };
  for (const auto& [source, expected] : cases) {
    EXPECT_EQ(RenderMarked(std::string("{% set c = messages[1].content %}") + source, messages), expected) << source;
  }
}

TEST(ChatTemplateTrained, EndOfTurnStopsAtOtherData) {
  // No special token before the next turn's words: the words of the user must never be trained.
  EXPECT_EQ(RenderMarked("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
                         Messages({{"user", "u"}, {"assistant", "a"}, {"user", "v"}})),
            "user: u\nassistant: ⟦a⟧\nuser: v\n");
  // A special token in the user's own words ends nothing.
  EXPECT_EQ(RenderMarked("{% for m in messages %}{{ m.content }}\n{% endfor %}",
                         Messages({{"assistant", "a"}, {"user", "<end>"}})),
            "⟦a⟧\n<end>\n");
}

TEST(ChatTemplateTrained, FirstSpecialTokenEnds) {
  EXPECT_EQ(RenderMarked("{{ messages[0].content }} .</s><end>", Messages({{"assistant", "a"}})), "⟦a .</s>⟧<end>");
  EXPECT_EQ(RenderMarked("{{ messages[0].content }}{{ eos_token }}\n.", Messages({{"assistant", "a"}})), "⟦a</s>⟧\n.");
}

TEST(ChatTemplateTrained, TurnsNameTheirMessage) {
  auto chat = RenderSource("{% for m in messages %}{{ m.content }}<end>{% endfor %}",
                           Messages({{"assistant", "a"}, {"assistant", "b"}}));
  ASSERT_TRUE(chat.ok());
  ASSERT_EQ(chat->trained.size(), 1u);
  EXPECT_EQ(chat->trained[0], (ByteSpan{0, 12}));
  ASSERT_EQ(chat->turns.size(), 2u);
  EXPECT_EQ(chat->turns[0].bytes, (ByteSpan{0, 6}));
  EXPECT_EQ(chat->turns[0].message, 0);
  EXPECT_EQ(chat->turns[1].message, 1);
}

TEST(ChatTemplateTrained, ContentOfParts) {
  Json messages =
      Json::array({{{"role", "assistant"}, {"content", Json::array({{{"type", "text"}, {"text", "hi"}}})}}});
  EXPECT_EQ(RenderMarked("{% for p in messages[0].content %}{{ p.type }}={{ p.text }}<end>{% endfor %}", messages),
            "text=⟦hi<end>⟧");
}

TEST(ChatTemplateTrained, UntraceableIsAnError) {
  const Json messages = Messages({{"user", "u"}, {"assistant", "answer"}});
  for (const char* source :
       {"{{ messages[0].content }}", "{{ messages[1].content | length }}", "{{ messages | length }}"}) {
    auto chat = RenderSource(source, messages);
    ASSERT_FALSE(chat.ok()) << source;
    EXPECT_NE(std::string(chat.status().message()).find("messages[1]"), std::string::npos) << chat.status();
  }
  EXPECT_TRUE(RenderSource("{{ messages[0].content }}", Messages({{"user", "u"}})).ok());
}

}  // namespace
}  // namespace hone
