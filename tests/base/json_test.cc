#include "proto/base/json.h"

#include <gtest/gtest.h>

#include <string>

namespace hone {
namespace {

std::string ErrorOf(std::string_view text, const JsonLimits& limits = {}) {
  auto parsed = ParseJson(text, limits);
  return parsed.ok() ? "no error" : std::string(parsed.status().message());
}

TEST(Json, Parses) {
  auto parsed = ParseJson(R"({"a": [1, -2, 1.5, "é\u0041", null, true], "b": {"a": {}}})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)["a"][0], 1);
  EXPECT_EQ((*parsed)["a"][1], -2);
  EXPECT_EQ((*parsed)["a"][2], 1.5);
  EXPECT_EQ((*parsed)["a"][3], "éA");
  EXPECT_TRUE((*parsed)["a"][4].is_null());
  EXPECT_EQ(ParseJson("18446744073709551615").value().get<uint64_t>(), UINT64_MAX);
  EXPECT_EQ(ParseJson(" 1 ").value(), 1);
}

TEST(Json, ErrorsSayWhere) {
  EXPECT_EQ(ErrorOf(R"({"a": 1,})").find("invalid JSON at byte 8"), 0u) << ErrorOf(R"({"a": 1,})");
  EXPECT_NE(ErrorOf(R"([1, 2)").find("byte"), std::string::npos) << ErrorOf(R"([1, 2)");
  EXPECT_NE(ErrorOf("").find("byte 0"), std::string::npos) << ErrorOf("");
  EXPECT_NE(ErrorOf("1 2").find("byte 2"), std::string::npos) << ErrorOf("1 2");
  EXPECT_NE(ErrorOf("NaN").find("byte"), std::string::npos) << ErrorOf("NaN");
  EXPECT_NE(ErrorOf("{'a': 1}").find("byte 1"), std::string::npos) << ErrorOf("{'a': 1}");
  EXPECT_NE(ErrorOf("/* */ 1").find("byte"), std::string::npos) << ErrorOf("/* */ 1");
  EXPECT_NE(ErrorOf("1e999").find("byte"), std::string::npos) << ErrorOf("1e999");
}

TEST(Json, DuplicateKeysAreRefusedPerObject) {
  EXPECT_NE(ErrorOf(R"({"a": 1, "b": 2, "a": 3})").find("duplicate key \"a\""), std::string::npos);
  EXPECT_NE(ErrorOf(R"([{"x": {"a": 1, "\u0061": 3}}])").find("duplicate key \"a\""), std::string::npos);
  EXPECT_EQ(ErrorOf(R"([{"a": 1}, {"a": {"a": 1}}])"), "no error");
}

TEST(Json, LimitsHold) {
  const JsonLimits limits{.max_bytes = 40, .max_depth = 3};
  EXPECT_EQ(ErrorOf("[[[1]]]", limits), "no error");
  EXPECT_EQ(ErrorOf(R"([{"a": [1]}, [[2]]])", limits), "no error");
  EXPECT_NE(ErrorOf("[[[[1]]]]", limits).find("nested deeper than 3"), std::string::npos);
  EXPECT_NE(ErrorOf(std::string(41, ' '), limits).find("limit of 40 bytes"), std::string::npos);
  EXPECT_NE(ErrorOf(std::string(1 << 20, '[')).find("nested deeper than 64"), std::string::npos);
}

TEST(Json, InvalidUtf8IsRefusedWithItsOffset) {
  EXPECT_NE(ErrorOf("[\"ab\xff\"]").find("byte 4: invalid UTF-8"), std::string::npos) << ErrorOf("[\"ab\xff\"]");
}

TEST(Utf8, Edges) {
  const auto bad_at = [](std::string_view text) {
    size_t offset = SIZE_MAX;
    return IsValidUtf8(text, &offset) ? -1 : static_cast<int>(offset);
  };
  EXPECT_EQ(bad_at(""), -1);
  EXPECT_EQ(bad_at("a\xC2\x80\xE0\xA0\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80"), -1);
  EXPECT_EQ(bad_at("a\xC0\x80"), 1);         // overlong
  EXPECT_EQ(bad_at("\xE0\x9F\xBF"), 0);      // overlong
  EXPECT_EQ(bad_at("\xF0\x8F\xBF\xBF"), 0);  // overlong
  EXPECT_EQ(bad_at("ab\xED\xA0\x80"), 2);    // surrogate
  EXPECT_EQ(bad_at("\xF4\x90\x80\x80"), 0);  // beyond U+10FFFF
  EXPECT_EQ(bad_at("\xC3"), 0);              // cut short
  EXPECT_EQ(bad_at("x\xE2\x82"), 1);
  EXPECT_EQ(bad_at("\x80"), 0);
}

}  // namespace
}  // namespace hone
