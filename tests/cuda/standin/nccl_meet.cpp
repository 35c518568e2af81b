/* How the ranks of a communicator of the stand-in for NCCL meet: the segment of a new communicator, and splits. */
#include <cstdio>
#include <unistd.h>

#include "nccl_impl.h"

namespace standin::nccl
{

ncclResult_t refuse(ncclResult_t error, const std::string &text)
{
    remember_error(text);
    fprintf(stderr, "standin[%d] NCCL: %s\n", standin::rank(), text.c_str());
    return error;
}

static std::string absent_ranks(const Shared *shared, int size)
{
    std::string text;
    for (int r = 0; r < size; r++) {
        if (shared->presence[r] == Presence::absent) {
            text += (text.empty() ? "" : ", ") + std::to_string(r);
        }
    }
    return text;
}

ncclResult_t enter(const Comm &comm)
{
    std::string why;
    comm->shared = segment_map(comm->address, &why);
    if (!comm->shared) {
        return refuse(ncclInvalidArgument, "initialisation of rank " + std::to_string(comm->rank) + ": " + why);
    }
    int size = 0;
    if (!comm->shared->size.compare_exchange_strong(size, comm->size) && size != comm->size) {
        return refuse(ncclInvalidArgument, "initialisation of communicator " + comm->name + ": rank " +
                                               std::to_string(comm->rank) + " says " + std::to_string(comm->size) +
                                               " ranks, another said " + std::to_string(size));
    }
    Presence nobody = Presence::absent;
    comm->shared->pid[comm->rank] = getpid();
    comm->shared->world[comm->rank] = standin::rank();
    if (!comm->shared->presence[comm->rank].compare_exchange_strong(nobody, Presence::here)) {
        misuse("rank %d of communicator %s is initialised twice", comm->rank, comm->name.c_str());
        return ncclInvalidUsage;
    }
    comm->shared->attached++;
    return ncclSuccess;
}

ncclResult_t meet(const Comm &comm, double since)
{
    if (comm->shared->attached == comm->size) {
        segment_forget(comm->address);
        return ncclSuccess;
    }
    int gone = gone_rank(comm);
    if (gone < 0 && now() - since < deadline()) {
        return ncclInProgress;
    }
    char seconds[32];
    snprintf(seconds, sizeof seconds, "%g", deadline());
    std::string head = "initialisation of communicator " + comm->name + ", rank " + std::to_string(comm->rank) +
                       " of " + std::to_string(comm->size);
    segment_forget(comm->address);
    return gone >= 0 ? refuse(ncclRemoteError, head + ": rank " + std::to_string(gone) + " is gone")
                     : refuse(ncclSystemError, head + ": rank " + absent_ranks(comm->shared, comm->size) +
                                                   " did not come in " + seconds + " s");
}

/* ncclCommSplit: ranks tell each other colour and key; the first rank of each colour makes the new segment. */
struct Split {
    Comm parent, child;
    uint64_t turn;
    double since = now();
    int first = -1; /* of the child, as the parent counts; -1: not all have come */
    bool entered = false;

    SplitChoice &choice(int rank) const
    {
        return parent->shared->split[turn % SPLITS][rank];
    }

    /* A rank of the parent that has not come, or -1. */
    int missing() const
    {
        for (int r = 0; r < parent->size; r++) {
            if (choice(r).turn <= turn) {
                return r;
            }
        }
        return -1;
    }

    void order()
    {
        const SplitChoice &mine = choice(parent->rank);
        auto before = [&](int a, int b) {
            return choice(a).key < choice(b).key || (choice(a).key == choice(b).key && a < b);
        };
        for (int r = 0; r < parent->size; r++) {
            if (choice(r).color == mine.color) {
                child->size++;
                child->rank += before(r, parent->rank);
                first = first < 0 || before(r, first) ? r : first;
            }
        }
    }

    ncclResult_t late(int rank)
    {
        int gone = gone_rank(parent);
        if (gone < 0 && now() - since < deadline()) {
            return ncclInProgress;
        }
        return refuse(gone >= 0 ? ncclRemoteError : ncclSystemError,
                      "split " + std::to_string(turn) + " of communicator " + parent->name + ": rank " +
                          std::to_string(gone >= 0 ? gone : rank) + (gone >= 0 ? " is gone" : " did not call it"));
    }

    ncclResult_t run()
    {
        if (int r = missing(); first < 0 && r >= 0) {
            return late(r);
        }
        if (first < 0) {
            order();
            SplitChoice &mine = choice(parent->rank);
            if (first == parent->rank) {
                if (!segment_make(&mine.address)) {
                    return refuse(ncclSystemError, "no memory for a communicator's segment");
                }
                mine.opened = turn + 1;
            }
        }
        if (!entered) {
            if (choice(first).opened <= turn) {
                return late(first);
            }
            child->address = choice(first).address;
            if (ncclResult_t result = enter(child)) {
                return result;
            }
            entered = true;
            since = now();
        }
        return meet(child, since);
    }
};

void choose_split(const Comm &parent, uint64_t turn, int color, int key)
{
    SplitChoice &mine = parent->shared->split[turn % SPLITS][parent->rank];
    mine.color = color;
    mine.key = key;
    mine.turn = turn + 1;
}

std::function<ncclResult_t()> make_split(const Comm &parent, const Comm &child, uint64_t turn)
{
    auto split = std::make_shared<Split>();
    split->parent = parent;
    split->turn = turn;
    std::weak_ptr<ncclComm> weak = child; /* the function will belong to the child: no circle */
    return [split, weak] {
        split->child = weak.lock();
        ncclResult_t result = split->run();
        split->child = nullptr;
        return result;
    };
}

} // namespace standin::nccl
