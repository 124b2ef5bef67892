#include "engine/train/micro_batches.h"

#include <algorithm>
#include <set>

#include "gtest/gtest.h"

namespace hone {
namespace {

Example Make(std::vector<int32_t> prompt, const std::vector<int32_t>& completion) {
  Example example;
  example.prompt_length = static_cast<int32_t>(prompt.size());
  example.trained.assign(prompt.size(), 0);
  example.trained.insert(example.trained.end(), completion.size(), 1);
  example.ids = std::move(prompt);
  example.ids.insert(example.ids.end(), completion.begin(), completion.end());
  return example;
}

std::vector<int32_t> Prompt(int32_t last) {
  std::vector<int32_t> ids(20);
  for (int32_t i = 0; i < 20; ++i) ids[i] = i + 1;
  ids.push_back(last);
  ids.push_back(99);
  return ids;
}

// What a row sees: its prefix, then its own segment up to itself, as tokens.
std::vector<int32_t> Context(const PackedBatch& batch, int32_t row) {
  for (const Segment& s : batch.segments) {
    if (row < s.q0 || row >= s.q0 + s.q_len) continue;
    std::vector<int32_t> ids(batch.ids.begin() + s.prefix0, batch.ids.begin() + s.prefix0 + s.prefix_len);
    ids.insert(ids.end(), batch.ids.begin() + s.kv0, batch.ids.begin() + row + 1);
    return ids;
  }
  return {};
}

// Every trained token, once, predicted from exactly the tokens before it, at their positions.
void CheckSlices(const PackedBatch& batch, const std::vector<LogitSlice>& slices,
                 const std::vector<const Example*>& examples) {
  for (const LogitSlice& slice : slices) {
    const Example& example = *examples[slice.example];
    ASSERT_EQ(slice.count, example.supervised());
    int32_t at = slice.first;
    for (int32_t t = 0; t < example.length(); ++t) {
      if (!example.trained[t]) continue;
      const int32_t row = batch.logit_rows[at];
      EXPECT_EQ(batch.targets[at++], example.ids[t]);
      EXPECT_EQ(batch.positions[row], t - 1);
      EXPECT_EQ(Context(batch, row), std::vector<int32_t>(example.ids.begin(), example.ids.begin() + t));
    }
  }
}

void Check(const std::vector<LaunchBatch>& batches, const std::vector<const Example*>& examples, bool distinct_rows) {
  std::set<uint32_t> seen;
  for (const LaunchBatch& batch : batches) {
    std::set<int32_t> rows(batch.packed.logit_rows.begin(), batch.packed.logit_rows.end());
    EXPECT_TRUE(!distinct_rows || rows.size() == batch.packed.logit_rows.size());
    int64_t tokens = 0;
    for (const LogitSlice& slice : batch.slices) {
      EXPECT_TRUE(seen.insert(slice.example).second);
      const Example& example = *examples[slice.example];
      tokens += example.length();
    }
    CheckSlices(batch.packed, batch.slices, examples);
    EXPECT_EQ(tokens, batch.example_tokens);
  }
  EXPECT_EQ(seen.size(), examples.size());
}

TEST(MicroBatches, ACommonBeginningIsComputedOnceALaunch) {
  const std::vector<Example> made = {Make(Prompt(50), {61, 62}), Make(Prompt(51), {63}),
                                     Make(Prompt(50), {64, 65, 66})};
  const std::vector<const Example*> examples = {&made[0], &made[1], &made[2]};
  for (int32_t tokens : {30, 33, 1000}) {
    const auto train = MakeTrainBatches(examples, tokens, PackingMode::kFirstFitDecreasing);
    Check(train, examples, true);
    Check(MakeForwardBatches(examples, tokens, true), examples, false);
    EXPECT_TRUE(tokens < 1000 || train[0].packed.tokens() == 20 + 3 * 2 + 6);
  }
  Check(MakeTrainBatches(examples, 1000, PackingMode::kOff), examples, true);
  Check(MakeForwardBatches(examples, 1000, false), examples, true);
}

TEST(MicroBatches, EqualPromptsAreSharedWholeWhereThatIsLess) {
  const std::vector<Example> made = {Make(Prompt(50), {61, 62}), Make(Prompt(50), {63})};
  const std::vector<const Example*> examples = {&made[0], &made[1]};
  const auto forward = MakeForwardBatches(examples, 1000, true);
  Check(forward, examples, false);
  EXPECT_EQ(forward[0].packed.tokens(), 22 + 3);
  Check(MakeTrainBatches(examples, 1000, PackingMode::kInOrder), examples, true);
}

TEST(MicroBatches, NothingTrainedIsEverShared) {
  std::vector<Example> made = {Make({}, Prompt(50)), Make({}, Prompt(50))};  // all trained, as `text` rows
  for (Example& example : made) example.trained[0] = 0;
  const std::vector<const Example*> examples = {&made[0], &made[1]};
  Check(MakeTrainBatches(examples, 1000, PackingMode::kInOrder), examples, true);
  Check(MakeForwardBatches(examples, 1000, true), examples, true);
}

TEST(MicroBatches, ACoupledStepHasItsMismatchedRowsBehindTheirPrompts) {
  auto prompt = [](int32_t begin, int32_t length) {
    std::vector<int32_t> ids(length);
    for (int32_t i = 0; i < length; ++i) ids[i] = begin + i;
    return ids;
  };
  const std::vector<Example> made = {Make(prompt(0, 5), {61, 62}), Make(prompt(20, 9), {63, 64, 65}),
                                     Make(prompt(40, 3), {66})};
  // The last pair's prompt was cut anew.
  const std::vector<Example> other = {Make(prompt(0, 5), {66}), Make(prompt(20, 9), {61, 62}),
                                      Make(prompt(41, 2), {63, 64, 65})};
  const std::vector<const Example*> examples = {&made[0], &made[1], &made[2]};
  const std::vector<const Example*> mismatched = {&other[0], &other[1], &other[2]};
  const auto coupled = MakeCoupledBatch(examples, mismatched, 31);
  ASSERT_TRUE(coupled.has_value());
  Check({*coupled}, examples, false);
  CheckSlices(coupled->packed, coupled->mismatched, mismatched);
  EXPECT_EQ(coupled->mismatched.size(), 3u);
  EXPECT_EQ(coupled->packed.tokens(), 7 + 12 + 4 + 1 + 2 + 5);
  EXPECT_EQ(coupled->packed.tail_rows, 1 + 2 + 5);
  EXPECT_EQ(coupled->packed.tail_logits, 1 + 2 + 3);
  EXPECT_EQ(coupled->example_tokens, 7 + 12 + 4);
  EXPECT_FALSE(MakeCoupledBatch(examples, mismatched, 30).has_value());
}

TEST(MicroBatches, ACoupledStepSharesWhatAllBeginWithWhereThatIsLess) {
  const std::vector<Example> made = {Make(Prompt(50), {61, 62}), Make(Prompt(51), {63}), Make(Prompt(52), {64})};
  const std::vector<Example> other = {Make(Prompt(50), {64}), Make(Prompt(51), {61, 62}), Make(Prompt(52), {63})};
  const std::vector<const Example*> examples = {&made[0], &made[1], &made[2]};
  const std::vector<const Example*> mismatched = {&other[0], &other[1], &other[2]};
  const auto coupled = MakeCoupledBatch(examples, mismatched, 1000);
  ASSERT_TRUE(coupled.has_value());
  Check({*coupled}, examples, false);
  CheckSlices(coupled->packed, coupled->mismatched, mismatched);
  EXPECT_EQ(coupled->packed.tokens(), 20 + 6 * 2 + 4 + 4);  // the beginning once, the rest of each prompt twice
}

}  // namespace
}  // namespace hone
