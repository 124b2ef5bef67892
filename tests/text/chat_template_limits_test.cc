// Hostile templates and requests end in an error that says why, soon and with the line.
#include <gtest/gtest.h>

#include <chrono>

#include "tests/text/chat_template_test_data.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

std::string Repeat(std::string_view piece, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += piece;
  return out;
}

TEST(ChatTemplateLimits, EndlessWorkIsRefused) {
  const std::string many = "{% for a in range(99999) %}";
  const std::string cases[] = {
      many + many + many + "{{ a }}" + Repeat("{% endfor %}", 3),
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m(x) %}{% set y = m(x ~ x) %}{% endmacro %}{{ m('a') }}",
      "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{{ 'x' * 99999999999 }}",
      "{{ ('x' * 1000000) * 1000000 }}",
      "{{ [1] * 99999999999 }}",
      "{% set ns = namespace(l=[]) %}{% for a in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for a in range(999) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
      "{{ range(100001) }}",
      "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
      "{{ '" + Repeat("a", 1000) + "' | list | map('indent', 900) | join | indent(1000) }}" +
          Repeat("{{ 'a' | replace('', 'b' * 9999999) | replace('b', 'cccc') }}", 20),
      "{{ 9 ** 9 ** 9 }}",
      many + "{{ range(99999) | list | sort }}{% endfor %}",
      "{% macro a() %}{% call b() %}{{ a() }}{% endcall %}{% endmacro %}{% macro b() %}{{ caller() }}{% endmacro %}{{ "
      "a() }}",
  };
  for (const std::string& source : cases) {
    const auto start = std::chrono::steady_clock::now();
    auto chat = RenderSource(source);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ASSERT_FALSE(chat.ok()) << source.substr(0, 200);
    EXPECT_NE(std::string(chat.status().message()).find("chat template line 1: "), std::string::npos) << chat.status();
    EXPECT_LT(seconds, 20) << source.substr(0, 200);
  }
}

TEST(ChatTemplateLimits, ALoopThatNeverEndsSaysSo) {
  auto chat = RenderSource("\n{% for a in range(99999) %}{% for b in range(99999) %}\n{% endfor %}{% endfor %}");
  EXPECT_EQ(chat.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(chat.status().message()).find("line 2"), std::string::npos) << chat.status();
  EXPECT_NE(std::string(chat.status().message()).find("loops forever"), std::string::npos) << chat.status();
}

TEST(ChatTemplateLimits, DeepSyntaxIsRefused) {
  const std::string cases[] = {
      "{{ " + Repeat("(", 5000) + "1" + Repeat(")", 5000) + " }}",
      "{{ " + Repeat("[", 5000) + Repeat("]", 5000) + " }}",
      "{{ " + Repeat("not ", 5000) + "1 }}",
      "{{ " + Repeat("-", 5000) + "1 }}",
      "{{ 1" + Repeat(" + 1", 5000) + " }}",
      "{{ s" + Repeat(" | trim", 5000) + " }}",
      "{{ s" + Repeat(".a", 5000) + " }}",
      "{{ 1" + Repeat(" if 1 else 1", 5000) + " }}",
      Repeat("{% if 1 %}", 5000) + Repeat("{% endif %}", 5000),
      Repeat("{% for a in [1] %}", 5000) + Repeat("{% endfor %}", 5000),
  };
  for (const std::string& source : cases) {
    auto parsed = ChatTemplate::Parse(source, {});
    ASSERT_FALSE(parsed.ok()) << source.substr(0, 40);
    EXPECT_NE(std::string(parsed.status().message()).find("line 1"), std::string::npos) << parsed.status();
  }
}

TEST(ChatTemplateLimits, LongButFlatIsFine) {
  auto chat =
      RenderSource("{{ ''" + Repeat(" ~ 'a'", 5000) + " }}{% if 0 %}" + Repeat("{% elif 0 %}", 3000) + "{% endif %}");
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->text.size(), 5000u);
}

TEST(ChatTemplateLimits, OutputIsBounded) {
  TemplateLimits limits;
  limits.max_output_bytes = 1000;
  EXPECT_TRUE(RenderSource("{% for a in range(100) %}0123456789{% endfor %}", Json::array(), nullptr, limits).ok());
  auto chat = RenderSource("{% for a in range(101) %}0123456789{% endfor %}", Json::array(), nullptr, limits);
  EXPECT_EQ(chat.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(ChatTemplateLimits, ErrorsNameTheLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\nb\n{{ 1 + }}", "chat template line 3: expected an expression, found '}}'"},
      {"\n{% for x in y %}\n", "chat template line 2: "},
      {"\n\n{{ x.y }}", "chat template line 3: 'x' is undefined"},
      {"{% if 1 %}\n{{ raise_exception('wrong ' ~ 'roles') }}{% endif %}",
       "chat template line 2: raise_exception: wrong roles"},
      {"\n{{ 1 | nope }}", "chat template line 2: the filter 'nope' is not supported"},
      {"{% macro m() %}\n\n{{ 1 / 0 }}{% endmacro %}\n{{ m() }}", "chat template line 3: division by zero"},
      {"\n{% include 'x' %}", "chat template line 2: the tag {% include %} is not supported"},
  };
  for (const auto& [source, expected] : cases) {
    auto chat = RenderSource(source);
    EXPECT_EQ(chat.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(chat.status().message()).substr(0, std::string(expected).size()), expected) << chat.status();
  }
}

TEST(ChatTemplateLimits, BadRequests) {
  EXPECT_FALSE(RenderSource("x", Json("text")).ok());
  EXPECT_FALSE(RenderSource("x", Json::array({"text"})).ok());
  EXPECT_FALSE(RenderSource("x", Json::array(), Json::array()).ok());
  EXPECT_FALSE(RenderSource("x", Json::array(), Json{{"messages", 1}}).ok());
  EXPECT_FALSE(RenderSource("x", Json::array(), Json{{"strftime_now", "today"}}).ok());
  EXPECT_FALSE(ChatTemplate::Parse("\xff", {}).ok());
  EXPECT_FALSE(ChatTemplate::Parse(std::string(2 << 20, 'a'), {}).ok());
  Json deep = 1;
  for (int i = 0; i < 200; ++i) deep = Json::array({deep});
  EXPECT_FALSE(RenderSource("x", Json::array(), Json{{"deep", deep}}).ok());
}

TEST(ChatTemplateLimits, NothingOfTheMachineIsReachable) {
  for (const char* source : {"{{ ''.__class__.x }}", "{{ messages.__init__() }}", "{{ cycler.__init__.__globals__ }}",
                             "{{ self }}{{ self.x }}", "{{ [].append(1) }}", "{{ {}.update({}) }}", "{{ lipsum() }}",
                             "{{ ''['__class__']() }}", "{{ namespace().__dict__.x }}", "{% import 'os' as os %}"}) {
    EXPECT_FALSE(RenderSource(source).ok()) << source;
  }
}

}  // namespace
}  // namespace hone
