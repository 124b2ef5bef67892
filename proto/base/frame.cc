#include "proto/base/frame.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kHeaderBytes = 4;
constexpr size_t kReadStep = size_t{1} << 20;

absl::Status WriteAll(int fd, const char* data, size_t size) {
  bool is_socket = true;
  while (size > 0) {
    ssize_t written = is_socket ? send(fd, data, size, MSG_NOSIGNAL) : write(fd, data, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      if (errno == ENOTSOCK && is_socket) {
        is_socket = false;
        continue;
      }
      if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::DeadlineExceededError("peer does not read its channel");
      return absl::UnavailableError(ToAbsl(StrCat("writing to the channel: ", std::strerror(errno))));
    }
    data += written;
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

// Reads up to `size` bytes, fewer only at the end of the stream.
absl::StatusOr<size_t> ReadUpTo(int fd, char* data, size_t size) {
  size_t total = 0;
  while (total < size) {
    ssize_t got = read(fd, data + total, size - total);
    if (got < 0) {
      if (errno == EINTR) continue;
      return absl::UnavailableError(ToAbsl(StrCat("reading from the channel: ", std::strerror(errno))));
    }
    if (got == 0) break;
    total += static_cast<size_t>(got);
  }
  return total;
}

}  // namespace

absl::Status WriteFrame(int fd, std::string_view bytes) {
  if (bytes.size() > kMaxFrameBytes) {
    return InvalidArgument("message of ", bytes.size(), " bytes is over the channel's limit of ", kMaxFrameBytes);
  }
  const auto length = static_cast<uint32_t>(bytes.size());
  char header[kHeaderBytes];
  for (size_t i = 0; i < kHeaderBytes; ++i) header[i] = static_cast<char>(length >> (8 * i) & 0xff);
  HONE_RETURN_IF_ERROR(WriteAll(fd, header, kHeaderBytes));
  return WriteAll(fd, bytes.data(), bytes.size());
}

absl::StatusOr<bool> ReadFrame(int fd, std::string* bytes) {
  bytes->clear();
  char header[kHeaderBytes];
  HONE_ASSIGN_OR_RETURN(size_t got, ReadUpTo(fd, header, kHeaderBytes));
  if (got == 0) return false;
  if (got < kHeaderBytes) return DataLoss("the channel ended inside a frame's length");
  uint32_t length = 0;
  for (size_t i = 0; i < kHeaderBytes; ++i) length |= uint32_t{static_cast<unsigned char>(header[i])} << (8 * i);
  if (length > kMaxFrameBytes) {
    return DataLoss("a frame claims ", length, " bytes; the channel's limit is ", kMaxFrameBytes);
  }
  while (bytes->size() < length) {
    const size_t offset = bytes->size();
    const size_t step = std::min(kReadStep, length - offset);
    bytes->resize(offset + step);
    HONE_ASSIGN_OR_RETURN(got, ReadUpTo(fd, bytes->data() + offset, step));
    if (got < step) return DataLoss("the channel ended inside a frame: ", offset + got, " of ", length, " bytes");
  }
  return true;
}

}  // namespace hone
