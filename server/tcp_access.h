// Serving over TCP, which is off by default: what credentials it needs and who is let in. TLS always; and a client
// certificate, or a token of which the daemon keeps only the SHA-256, compared in constant time. Files are read again
// when they change, so that a certificate or a token is replaced without a restart.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"

namespace hone {

struct TcpOptions {
  std::string listen;       // HOST:PORT; empty: no TCP
  std::string certificate;  // PEM, the chain
  std::string key;          // PEM
  std::string client_ca;    // PEM: clients must show a certificate that it signed
  std::string token_file;   // a SHA-256 (64 hex digits) a line; clients send "authorization: Bearer TOKEN"
  unsigned refresh_seconds = 10;
};

// INVALID_ARGUMENT, naming the flag, unless TLS and at least one way to know clients are set up, and
// FAILED_PRECONDITION where a file cannot be read or others may read the key.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TcpCredentials(const TcpOptions& options);

// The digests of a token file. Thread-safe.
class TokenFile {
 public:
  explicit TokenFile(std::string path) : path_(std::move(path)) {}
  absl::Status Load();
  // Every digest is compared, each in constant time.
  bool Allows(std::string_view token);

 private:
  const std::string path_;
  std::mutex mutex_;
  int64_t changed_ns_ = -1;
  std::vector<std::string> digests_;  // 32 bytes each
};

}  // namespace hone
