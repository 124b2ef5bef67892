// gRPC's own messages go to the daemon's log, a few in each period: some of them are written for every bad header that
// a client sends, so that a client could fill the disk.
#pragma once

namespace hone {

// Once, before anything of gRPC.
void RouteGrpcLog();
// Begins a new period; every few seconds.
void RefreshGrpcLog();

}  // namespace hone
