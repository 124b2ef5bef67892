// Where things lie inside the state folder (the contract's "Places"). Ids and digests are checked before they come
// here.
#pragma once

#include <cstdint>
#include <string>

#include "proto/base/status.h"

namespace hone {

class Layout {
 public:
  explicit Layout(std::string root) : root_(std::move(root)) {}
  const std::string& root() const { return root_; }
  std::string Database() const { return root_ + "/hone.db"; }
  std::string Lock() const { return root_ + "/lock"; }
  std::string Blobs() const { return root_ + "/blobs"; }
  std::string Blob(const std::string& digest) const { return Blobs() + "/" + digest; }
  std::string Models() const { return root_ + "/models"; }
  std::string Jobs() const { return root_ + "/jobs"; }
  std::string Job(const std::string& id) const { return Jobs() + "/" + id; }
  std::string JobLock(const std::string& id) const { return Job(id) + "/lock"; }
  std::string Attempts(const std::string& id) const { return Job(id) + "/attempts"; }
  std::string Attempt(const std::string& id, uint32_t n) const { return StrCat(Attempts(id), "/", n); }
  std::string WorkerLog(const std::string& id, uint32_t n) const { return Attempt(id, n) + "/worker.log"; }
  std::string Steps(const std::string& id, uint32_t n) const { return Attempt(id, n) + "/steps.jsonl"; }
  std::string Output(const std::string& id) const { return Job(id) + "/output"; }
  std::string Adapter(const std::string& id) const { return Output(id) + "/adapter"; }
  std::string ReferenceCache() const { return root_ + "/reference-cache"; }
  // Logs of workers that belong to no job (plans, inspections, sessions).
  std::string Scratch() const { return root_ + "/scratch"; }

 private:
  std::string root_;
};

}  // namespace hone
