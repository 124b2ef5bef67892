#include "server/tcp_access.h"

#include <openssl/crypto.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "grpcpp/security/auth_metadata_processor.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr uint64_t kMaxTokenFile = 1 << 20;
constexpr std::string_view kBearer = "Bearer ";

absl::Status CheckFile(const std::string& path, std::string_view flag, bool secret) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || access(path.c_str(), R_OK) != 0) {
    return FailedPrecondition(flag, ": cannot read ", path, ": ", std::strerror(errno));
  }
  if (secret && (info.st_mode & 0077) != 0) {
    return FailedPrecondition(flag, ": ", path, " may be read by others; chmod 600 ", path);
  }
  return absl::OkStatus();
}

std::string Unhex(std::string_view hex) {
  std::string bytes;
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(digit(hex[i]) * 16 + digit(hex[i + 1])));
  }
  return bytes;
}

// Looks at each call's authorization header, reflection and health included.
class TokenGate final : public grpc::AuthMetadataProcessor {
 public:
  explicit TokenGate(std::shared_ptr<TokenFile> tokens) : tokens_(std::move(tokens)) {}
  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext*, OutputMetadata* consumed,
                       OutputMetadata*) override {
    const auto found = metadata.find("authorization");
    if (found != metadata.end()) {
      const std::string_view value(found->second.data(), found->second.length());
      if (value.substr(0, kBearer.size()) == kBearer && tokens_->Allows(value.substr(kBearer.size()))) {
        consumed->insert({"authorization", std::string(value)});
        return grpc::Status::OK;
      }
    }
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "a valid token is expected: authorization: Bearer TOKEN");
  }

 private:
  std::shared_ptr<TokenFile> tokens_;
};

}  // namespace

absl::Status TokenFile::Load() {
  std::lock_guard lock(mutex_);
  struct stat info;
  if (stat(path_.c_str(), &info) != 0) return FailedPrecondition("--token-file: ", path_, ": ", std::strerror(errno));
  const int64_t changed = info.st_mtim.tv_sec * int64_t{1'000'000'000} + info.st_mtim.tv_nsec;
  if (changed == changed_ns_) return absl::OkStatus();
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path_, kMaxTokenFile));
  std::vector<std::string> digests;
  size_t line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    at = end + 1;
    ++line_number;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    if (!IsSha256Hex(line)) {
      return FailedPrecondition("--token-file: ", path_, " line ", line_number,
                                ": the SHA-256 of a token is expected, 64 lower-case hex digits; printf %s TOKEN | "
                                "sha256sum makes it");
    }
    digests.push_back(Unhex(line));
  }
  digests_.swap(digests);
  changed_ns_ = changed;
  return absl::OkStatus();
}

bool TokenFile::Allows(std::string_view token) {
  (void)Load();  // an unreadable new file leaves the old tokens in force
  const std::string digest = Unhex(Sha256Hex(token));
  std::lock_guard lock(mutex_);
  bool allowed = false;
  for (const std::string& known : digests_) {
    allowed |= CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0;
  }
  return allowed;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TcpCredentials(const TcpOptions& options) {
  if (options.certificate.empty() || options.key.empty()) {
    return InvalidArgument("--listen: TCP is served with TLS only; give --tls-certificate and --tls-key");
  }
  if (options.client_ca.empty() && options.token_file.empty()) {
    return InvalidArgument(
        "--listen: give --tls-client-ca (clients show a certificate) or --token-file (clients send a "
        "token), or both");
  }
  HONE_RETURN_IF_ERROR(CheckFile(options.certificate, "--tls-certificate", false));
  HONE_RETURN_IF_ERROR(CheckFile(options.key, "--tls-key", true));
  const bool mutual = !options.client_ca.empty();
  if (mutual) HONE_RETURN_IF_ERROR(CheckFile(options.client_ca, "--tls-client-ca", false));

  using grpc::experimental::FileWatcherCertificateProvider;
  auto provider = mutual ? std::make_shared<FileWatcherCertificateProvider>(options.key, options.certificate,
                                                                            options.client_ca, options.refresh_seconds)
                         : std::make_shared<FileWatcherCertificateProvider>(options.key, options.certificate,
                                                                            options.refresh_seconds);
  grpc::experimental::TlsServerCredentialsOptions tls(provider);
  tls.watch_identity_key_cert_pairs();
  if (mutual) tls.watch_root_certs();
  tls.set_cert_request_type(mutual ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                   : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  std::shared_ptr<grpc::ServerCredentials> credentials = grpc::experimental::TlsServerCredentials(tls);
  if (!options.token_file.empty()) {
    HONE_RETURN_IF_ERROR(CheckFile(options.token_file, "--token-file", true));
    auto tokens = std::make_shared<TokenFile>(options.token_file);
    HONE_RETURN_IF_ERROR(tokens->Load());
    credentials->SetAuthMetadataProcessor(std::make_shared<TokenGate>(tokens));
  }
  return credentials;
}

}  // namespace hone
