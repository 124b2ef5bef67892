#include "client/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "proto/base/status.h"

namespace hone {
namespace {

void WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(fd, text.data(), text.size());
    if (count <= 0) return;
    text.remove_prefix(static_cast<size_t>(count));
  }
}

std::string Formatted(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

bool StartsCharacter(char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }

}  // namespace

Terminal DetectTerminal(bool no_color, bool dumb) {
  Terminal terminal;
  terminal.out_is_terminal = isatty(STDOUT_FILENO) != 0;
  terminal.err_is_terminal = isatty(STDERR_FILENO) != 0 && !dumb;
  terminal.out_colours = terminal.out_is_terminal && !no_color && !dumb;
  terminal.err_colours = terminal.err_is_terminal && !no_color;
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) terminal.width = size.ws_col;
  return terminal;
}

std::string Paint(bool colours, Colour colour, std::string_view text) {
  if (!colours || colour == Colour::kPlain) return std::string(text);
  static constexpr const char* kCodes[] = {"", "1", "2", "31", "32", "33", "34"};
  return StrCat("\x1b[", kCodes[static_cast<int>(colour)], "m", text, "\x1b[0m");
}

std::string Printable(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // C1 controls (U+0080 to U+009F) are two bytes in UTF-8, and terminals obey them.
    const bool c1 = byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (byte == '\n' || byte == '\t') {
      out.push_back(text[i]);
    } else if (byte < 0x20 || byte == 0x7f) {
      out += StrCat("\\x", kHex[byte >> 4], kHex[byte & 15]);
    } else if (c1) {
      const auto next = static_cast<unsigned char>(text[++i]);
      out += StrCat("\\x", kHex[next >> 4], kHex[next & 15]);
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return StrCat(bytes, " B");
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1024 && unit < 3) {
    value /= 1024;
    ++unit;
  }
  return StrCat(Formatted(value < 10 ? "%.2f" : value < 100 ? "%.1f" : "%.0f", value), " ", kUnits[unit]);
}

std::string FormatCount(double value) {
  if (!std::isfinite(value)) return "-";
  if (std::abs(value) < 100 && value != std::floor(value)) return Formatted("%.1f", value);
  std::string digits = Formatted("%.0f", value);
  for (int at = static_cast<int>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
    digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

std::string FormatDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  if (seconds < 10) return Formatted("%.1fs", seconds);
  const auto whole = static_cast<uint64_t>(std::llround(seconds));
  char text[64];
  if (whole < 60) {
    std::snprintf(text, sizeof text, "%llus", static_cast<unsigned long long>(whole));
  } else if (whole < 3600) {
    std::snprintf(text, sizeof text, "%llum%02llus", static_cast<unsigned long long>(whole / 60),
                  static_cast<unsigned long long>(whole % 60));
  } else if (whole < 86400) {
    std::snprintf(text, sizeof text, "%lluh%02llum", static_cast<unsigned long long>(whole / 3600),
                  static_cast<unsigned long long>(whole / 60 % 60));
  } else {
    std::snprintf(text, sizeof text, "%llud%02lluh", static_cast<unsigned long long>(whole / 86400),
                  static_cast<unsigned long long>(whole / 3600 % 24));
  }
  return text;
}

std::string FormatNumber(double value) { return std::isfinite(value) ? Formatted("%.4g", value) : "-"; }

std::string Sparkline(const std::vector<double>& values, size_t width) {
  static constexpr const char* kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const size_t count = std::min(values.size(), width);
  const std::vector<double> shown(values.end() - static_cast<ptrdiff_t>(count), values.end());
  double low = INFINITY, high = -INFINITY;
  for (double value : shown) {
    if (!std::isfinite(value)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  std::string line;
  for (double value : shown) {
    if (!std::isfinite(value)) {
      line += " ";
      continue;
    }
    const double share = high > low ? (value - low) / (high - low) : 0.5;
    line += kBlocks[std::min<size_t>(7, static_cast<size_t>(share * 8))];
  }
  return line;
}

std::string Bar(double share, size_t width) {
  const double bounded = std::isfinite(share) ? std::clamp(share, 0.0, 1.0) : 0.0;
  const auto full = static_cast<size_t>(bounded * static_cast<double>(width));
  std::string bar;
  for (size_t i = 0; i < width; ++i) bar += i < full ? "█" : "░";
  return bar;
}

size_t DisplayWidth(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), StartsCharacter));
}

std::string Clip(std::string_view text, size_t columns) {
  if (DisplayWidth(text) <= columns) return std::string(text);
  size_t seen = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!StartsCharacter(text[i])) continue;
    if (seen + 1 >= columns) return std::string(text.substr(0, i)) + (columns > 0 ? "…" : "");
    ++seen;
  }
  return std::string(text);
}

std::string Table::Render(bool colours) const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  std::string out;
  for (size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (size_t i = 0; i < rows_[r].size(); ++i) {
      const std::string pad(widths[i] - DisplayWidth(rows_[r][i]), ' ');
      const bool right = std::find(right_.begin(), right_.end(), i) != right_.end();
      line += StrCat(i > 0 ? "  " : "", right ? pad : "", rows_[r][i], right ? "" : pad);
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += StrCat(r == 0 ? Paint(colours, Colour::kBold, line) : line, "\n");
  }
  return out;
}

void Out(std::string_view text) { WriteAll(STDOUT_FILENO, text); }
void Err(std::string_view text) { WriteAll(STDERR_FILENO, text); }

void StatusLine::Show(const std::string& text) {
  if (!terminal_.err_is_terminal) return;
  Err(StrCat("\r", Clip(text, static_cast<size_t>(std::max(20, terminal_.width - 1))), "\x1b[K"));
  shown_ = true;
}

void StatusLine::Clear() {
  if (shown_) Err("\r\x1b[K");
  shown_ = false;
}

void StatusLine::Say(const std::string& text) {
  Clear();
  Err(text + "\n");
}

}  // namespace hone
