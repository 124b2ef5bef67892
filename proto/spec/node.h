// A YAML or JSON document as a plain tree with positions, bounded in size and depth. Internal to proto/spec.
// Not here: any meaning; read.cc gives it that.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace hone {

struct Node {
  enum class Kind { kNull, kScalar, kList, kMap };
  struct Entry {
    std::string key;
    int line = 0;
    int column = 0;
    std::shared_ptr<const Node> value;
  };
  Kind kind = Kind::kNull;
  std::string text;  // kScalar
  int line = 0;      // 0: unknown (JSON)
  int column = 0;
  std::vector<std::shared_ptr<const Node>> items;  // kList
  std::vector<Entry> entries;                      // kMap, in order, duplicates kept for the reader to refuse
  size_t size = 1;                                 // nodes in it, aliases counted as often as they are used
  int depth = 1;
};
using NodePtr = std::shared_ptr<const Node>;

inline constexpr size_t kMaxSpecBytes = size_t{1} << 20;
inline constexpr int kMaxSpecDepth = 16;
inline constexpr size_t kMaxSpecNodes = 10000;

// Errors open with "file:line:column: ". Exactly one document; an empty text gives a null node.
absl::StatusOr<NodePtr> NodeFromYaml(std::string_view text, std::string_view file_name);
absl::StatusOr<NodePtr> NodeFromJson(std::string_view text, std::string_view file_name);

}  // namespace hone
