// Frames and the messages in them, as the daemon reads them from a worker and a worker from the daemon.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "hone/v1/worker.pb.h"
#include "proto/base/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int fd = memfd_create("frames", MFD_CLOEXEC);
  if (fd < 0 || write(fd, data, size) != static_cast<ssize_t>(size) || lseek(fd, 0, SEEK_SET) != 0) abort();
  std::string bytes;
  size_t total = 0;
  while (true) {
    const auto more = hone::ReadFrame(fd, &bytes);
    if (!more.ok() || !*more) break;
    total += 4 + bytes.size();
    if (total > size) abort();  // more came out than went in
    hone::v1::FromWorker from;
    if (from.ParseFromString(bytes)) (void)from.SerializeAsString();
    hone::v1::ToWorker to;
    if (to.ParseFromString(bytes)) (void)to.SerializeAsString();
  }
  // Memory follows what arrived, not what a length claims.
  if (bytes.capacity() > size + (size_t{2} << 20)) abort();
  close(fd);
  return 0;
}
