// hone spec: the options of a job file, without a daemon.
#include "client/commands.h"
#include "client/job_file.h"
#include "nlohmann/json.hpp"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {

int RunSpec(Context& context, const SpecOptions& options) {
  if (options.markdown) {
    Out(SpecReferenceMarkdown());
    return kExitOk;
  }
  if (options.resolve.empty()) {
    HONE_TRY(const std::string help, SpecHelp(options.field));
    const nlohmann::ordered_json row = {{"field", options.field}, {"help", help}};
    Out(context.json() ? row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n" : help);
    return kExitOk;
  }
  HONE_TRY(const JobFile file, LoadJobFile(options.resolve, options.sets));
  for (const std::string& advice : file.advice) Warn(context, advice);
  HONE_TRY(const v1::JobSpec resolved, ResolveSpec(file.spec));
  Out(context.json() ? SpecToJson(resolved) + "\n" : SpecToYaml(resolved));
  return kExitOk;
}

}  // namespace hone
