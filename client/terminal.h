// How `hone` talks: tables, sizes, durations, bars and sparklines as plain text; colours and redrawing only where a
// terminal is and NO_COLOR is not set. Data goes to stdout, everything else to stderr.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hone {

enum class Colour { kPlain, kBold, kDim, kRed, kGreen, kYellow, kBlue };

struct Terminal {
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  bool out_colours = false;
  bool err_colours = false;
  int width = 80;
};
Terminal DetectTerminal(bool no_color, bool dumb);

std::string Paint(bool colours, Colour colour, std::string_view text);
// The text with control characters escaped: names and messages may hold what a stranger wrote.
std::string Printable(std::string_view text);

std::string FormatBytes(uint64_t bytes);     // "1.50 GiB"
std::string FormatCount(double value);       // "12,345"; below 100 with one decimal
std::string FormatDuration(double seconds);  // "1h02m", "3m05s", "4.2s"
std::string FormatNumber(double value);      // four significant digits, for losses
// Blocks from ▁ to █ over the last `width` values; "" for none.
std::string Sparkline(const std::vector<double>& values, size_t width);
// "██████░░░░"
std::string Bar(double share, size_t width);
// Columns a terminal needs for UTF-8 text of narrow characters.
size_t DisplayWidth(std::string_view text);
// At most `columns` wide, never inside a character.
std::string Clip(std::string_view text, size_t columns);

// Columns padded to their widest cell; numbers (columns in `right`) to the right. The first row is the header.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void AlignRight(size_t column) { right_.push_back(column); }
  std::string Render(bool colours) const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<size_t> right_;
};

// Whole writes to stdout and stderr, flushed; a closed pipe is not an error of ours.
void Out(std::string_view text);
void Err(std::string_view text);

// One line at the bottom of stderr that is redrawn; nothing where stderr is no terminal.
class StatusLine {
 public:
  explicit StatusLine(const Terminal& terminal) : terminal_(terminal) {}
  ~StatusLine() { Clear(); }
  void Show(const std::string& text);
  void Clear();
  // A lasting line above it.
  void Say(const std::string& text);

 private:
  const Terminal& terminal_;
  bool shown_ = false;
};

}  // namespace hone
