#include "engine/data/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace hone {
namespace {

using testing::HasSubstr;

std::string ErrorOf(std::string_view bytes, const RowLimits& limits = {}) {
  auto rows = ParseRows(bytes, "rows.jsonl", limits);
  return rows.ok() ? "" : std::string(rows.status().message());
}

TEST(Records, EveryKind) {
  auto rows = ParseRows(
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"label":true,"tools":[{"z":1,"a":2}]}
{"prompt":"p","completion":"c","label":false,"extra":1}

{"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}],"chat_template_kwargs":{"x":1}}
{"text":"t"}
{"ids":[1,2,3],"trained":[[0,1],[1,3]]}
{"prompt_ids":[],"completion_ids":[7],"label":true})",
      "f");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 6u);
  const std::vector<Row>& r = *rows;
  EXPECT_EQ(r[0].kind, RowKind::kMessages);
  EXPECT_EQ(r[0].label, true);
  EXPECT_EQ(r[0].tools.dump(), R"([{"z":1,"a":2}])");  // the order of keys is what a template shows
  EXPECT_EQ(r[1].kind, RowKind::kPromptCompletionText);
  EXPECT_EQ(r[1].prompt + r[1].completion, "pc");
  EXPECT_EQ(r[1].label, false);
  EXPECT_EQ(r[2].kind, RowKind::kPromptCompletionMessages);
  EXPECT_EQ(r[2].number, 3u);
  EXPECT_EQ(r[2].line, 4u);
  EXPECT_FALSE(r[2].label.has_value());
  EXPECT_EQ(r[3].text, "t");
  EXPECT_EQ(r[4].ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(r[4].trained.size(), 2u);
  EXPECT_EQ(r[5].kind, RowKind::kPromptCompletionIds);
}

TEST(Records, ArrayAndByteOrderMark) {
  auto rows = ParseRows("\xef\xbb\xbf \n[\n {\"text\": \"a]},\\\"\"},\n\n {\"text\": \"b\"} ]\n", "f");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[0].text, "a]},\"");
  EXPECT_EQ((*rows)[0].line, 3u);
  EXPECT_EQ((*rows)[1].line, 5u);
  EXPECT_TRUE(ParseRows("\xef\xbb\xbf{\"text\":\"a\"}\r\n{\"text\":\"b\"}\r\n", "f").ok());
}

TEST(Records, ErrorsNameRowAndLine) {
  EXPECT_EQ(ErrorOf("{\"text\":\"a\"}\n\n{\"text\":1}"),
            "rows.jsonl: row 2 (line 3): text: expected a string, not number");
  EXPECT_THAT(ErrorOf("{\"text\":\"a\"}\n{\"text\":"),
              HasSubstr("rows.jsonl: row 2 (line 2): invalid JSON at byte 8 of the row: syntax error"));
  EXPECT_THAT(ErrorOf("{\"text\":\"a\"}\n{\"text\":\"\xff\"}"),
              HasSubstr("rows.jsonl: byte 22 (line 2): invalid UTF-8"));
  EXPECT_THAT(ErrorOf("{\"conversations\":[]}"), HasSubstr("the row has: conversations"));
  EXPECT_THAT(ErrorOf("{\"text\":\"a\",\"ids\":[1]}"), HasSubstr("exactly one"));
  EXPECT_THAT(ErrorOf("{\"prompt\":\"a\"}"), HasSubstr("the row has: prompt"));
  EXPECT_THAT(ErrorOf("{\"prompt\":\"a\",\"completion\":[]}"), HasSubstr("prompt: expected a list of messages"));
  EXPECT_THAT(ErrorOf("{\"messages\":[]}"), HasSubstr("messages: expected a list"));
  EXPECT_THAT(ErrorOf("{\"messages\":[{\"role\":1}]}"), HasSubstr("messages[0].role"));
  EXPECT_THAT(ErrorOf("{\"messages\":[{\"role\":\"user\"}]}"), HasSubstr("messages[0].content: missing"));
  EXPECT_THAT(ErrorOf("{\"prompt\":\"a\",\"completion\":\"b\",\"label\":1}"),
              HasSubstr("label: expected true or false, not 1"));
  EXPECT_THAT(ErrorOf("{\"text\":\"a\",\"text\":\"b\"}"), HasSubstr("duplicate key \"text\""));
  EXPECT_THAT(ErrorOf("{\"ids\":[1,-2],\"trained\":[]}"), HasSubstr("ids[1]: expected a token id"));
  EXPECT_THAT(ErrorOf("{\"ids\":[1,2147483648],\"trained\":[]}"), HasSubstr("ids[1]"));
  EXPECT_THAT(ErrorOf("{\"ids\":[1]}"), HasSubstr("'ids' needs 'trained'"));
  EXPECT_THAT(ErrorOf("{\"ids\":[1,2],\"trained\":[[1,3]]}"),
              HasSubstr("trained[0]: [1, 3] is not a range inside the row's 2 ids"));
  EXPECT_THAT(ErrorOf("{\"ids\":[1,2],\"trained\":[[1,2],[0,1]]}"), HasSubstr("trained[1]: ranges must ascend"));
  EXPECT_THAT(ErrorOf("{\"text\":\"a\",\"tools\":\"[]\"}"), HasSubstr("tools: expected a list"));
  EXPECT_THAT(ErrorOf("[1, 2"), HasSubstr("row 1 (line 1): expected a JSON object"));
  EXPECT_THAT(ErrorOf("[{\"text\":\"a\"},"), HasSubstr("row 2 (line 1): the JSON array is not closed by ]"));
  EXPECT_THAT(ErrorOf("[{\"text\":\"a\"}] x"), HasSubstr("after the end of the JSON array"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("no rows"));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("no rows"));
  EXPECT_THAT(ErrorOf("\n \n"), HasSubstr("no rows"));
  EXPECT_THAT(ErrorOf("{\"text\":1e999}"), HasSubstr("row 1 (line 1): invalid JSON"));
}

TEST(Records, Limits) {
  EXPECT_THAT(ErrorOf("{\"text\":\"a\",\"x\":" + std::string(100'000, '[') + "}"), HasSubstr("nested deeper than 64"));
  EXPECT_THAT(ErrorOf("{\"text\":\"aaaaaaaa\"}", {.max_row_bytes = 10}), HasSubstr("longer than 10 bytes"));
  EXPECT_THAT(ErrorOf("{\"text\":\"a\"}\n{\"text\":\"b\"}", {.max_rows = 1}), HasSubstr("more than 1 rows"));
  EXPECT_THAT(ErrorOf("{\"text\":\"a\"}", {.max_file_bytes = 5}), HasSubstr("limit of 5 bytes"));
  EXPECT_FALSE(ReadRows("/no/such/file.jsonl").ok());
}

TEST(Records, RealFiles) {
  const char* data = std::getenv("HONE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  const std::string folder = std::string(data) + "/datasets/";
  auto kto = ReadRows(folder + "kto_en_demo.json");
  ASSERT_TRUE(kto.ok()) << kto.status();
  EXPECT_EQ(kto->size(), 300u);
  auto c4 = ReadRows(folder + "c4_demo.jsonl");
  ASSERT_TRUE(c4.ok()) << c4.status();
  EXPECT_EQ(c4->size(), 300u);
  auto alpaca = ReadRows(folder + "alpaca_en_demo.json");
  ASSERT_FALSE(alpaca.ok());
  EXPECT_THAT(std::string(alpaca.status().message()), HasSubstr("row 1 (line 2): expected exactly one of"));
  EXPECT_THAT(std::string(alpaca.status().message()), HasSubstr("the row has: instruction, input, output"));
}

}  // namespace
}  // namespace hone
