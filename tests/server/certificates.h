// A certificate authority of one test: makes keys and certificates in memory with OpenSSL, valid, expired or signed by
// somebody else.
#pragma once

#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace hone {

struct Pem {
  std::string certificate;
  std::string key;
};

class Authority {
 public:
  explicit Authority(const std::string& name) {
    key_.reset(EVP_EC_gen("P-256"));
    certificate_ = Make(name, key_.get(), 0, 3600, true);
    EXPECT_GT(X509_sign(certificate_.get(), key_.get(), EVP_sha256()), 0);
  }
  std::string pem() const { return Text(certificate_.get()); }
  // Valid from `from` to `to` seconds from now.
  Pem Issue(const std::string& name, long from = -60, long to = 3600) const {
    std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"), EVP_PKEY_free);
    auto certificate = Make(name, key.get(), from, to, false);
    X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate_.get()));
    EXPECT_GT(X509_sign(certificate.get(), key_.get(), EVP_sha256()), 0);
    std::unique_ptr<BIO, decltype(&BIO_free)> out(BIO_new(BIO_s_mem()), BIO_free);
    PEM_write_bio_PrivateKey(out.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    return {Text(certificate.get()), Text(out.get())};
  }

 private:
  using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

  static std::string Text(BIO* bio) {
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    return std::string(data, static_cast<size_t>(size));
  }
  static std::string Text(X509* certificate) {
    std::unique_ptr<BIO, decltype(&BIO_free)> out(BIO_new(BIO_s_mem()), BIO_free);
    PEM_write_bio_X509(out.get(), certificate);
    return Text(out.get());
  }
  static void Extend(X509* certificate, int nid, const char* value) {
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, certificate, certificate, nullptr, nullptr, 0);
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value);
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }
  static Certificate Make(const std::string& name, EVP_PKEY* key, long from, long to, bool authority) {
    static long serial = 1;
    Certificate certificate(X509_new(), X509_free);
    X509_set_version(certificate.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), from);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), to);
    X509_set_pubkey(certificate.get(), key);
    X509_NAME* subject = X509_get_subject_name(certificate.get());
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(name.c_str()), -1,
                               -1, 0);
    X509_set_issuer_name(certificate.get(), subject);
    Extend(certificate.get(), NID_basic_constraints, authority ? "critical,CA:TRUE" : "CA:FALSE");
    if (!authority) Extend(certificate.get(), NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
    return certificate;
  }

  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key_{nullptr, EVP_PKEY_free};
  Certificate certificate_{nullptr, X509_free};
};

}  // namespace hone
