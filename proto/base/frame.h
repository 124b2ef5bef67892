// Framing of messages on a stream between processes: a 4-byte little-endian length, then that many bytes. Used between
// the daemon and its workers (proto/hone/v1/worker.proto). Not here: what the bytes mean, and threads (a caller
// serialises its own writes on one descriptor; one reader and one writer may work at the same time).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hone {

// The longest message either side accepts; a longer length is taken for a broken or hostile peer.
inline constexpr uint32_t kMaxFrameBytes = uint32_t{64} << 20;

// Writes one frame completely. Errors: INVALID_ARGUMENT if longer than kMaxFrameBytes, UNAVAILABLE if the peer is gone
// (never SIGPIPE on a socket), DEADLINE_EXCEEDED if the descriptor has a send timeout (SO_SNDTIMEO) and it passed.
absl::Status WriteFrame(int fd, std::string_view bytes);

// Reads one frame into *bytes. False at the end of the stream between frames. Errors: DATA_LOSS for an end inside a
// frame or a length over kMaxFrameBytes, UNAVAILABLE if reading fails. Memory grows with what arrives, not with what
// the length claims.
absl::StatusOr<bool> ReadFrame(int fd, std::string* bytes);

}  // namespace hone
