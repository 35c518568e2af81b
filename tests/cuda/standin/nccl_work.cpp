/* The operations of the stand-in for NCCL: machines of states that never block.
 *
 * A collective goes step by step through one slot per rank: each rank fills its slot once everybody has consumed the
 * step before, publishes it, and takes what it needs when all have published. A message is a run of bytes in the pipe
 * between two ranks; like a send on the device, whose buffer is read until the receiver has it, it is complete only
 * when it has been received. */
#include <algorithm>
#include <cstring>
#include <utility>

#include "nccl_impl.h"

namespace standin::nccl
{

/* What both kinds of operation do first; false: not ready to go on, with the step to return. */
struct Operation {
    Comm comm;
    Task task;
    Call call;
    uint64_t number;
    uint64_t steps = UINT64_MAX; /* of the communicator with which this operation is complete; messages: never */
    std::string label;
    double since = 0;    /* time of the first step, then of the last progress */
    bool broken = false; /* by an injected error */

    Operation(const Comm &c, const Task &t) : comm(c), task(t), call(call_of(t)), number(0)
    {
    }

    void start()
    {
        if (since == 0) {
            since = now();
            broken = wants_error(comm, task.kind);
        }
        if (broken) {
            fail(comm, ncclSystemError,
                 "communicator " + comm->name + ": " + label + " fails, as STANDIN_NCCL_ERROR asks");
        }
    }

    Step mismatch(const char *what, int peer, const Call &theirs)
    {
        return fail(comm, ncclInvalidUsage,
                    "MISMATCH on communicator " + comm->name + ", " + what + " " + std::to_string(number) + ": rank " +
                        std::to_string(comm->rank) + " calls " + show(call) + ", rank " + std::to_string(peer) +
                        " calls " + show(theirs));
    }

    Step wait(int peer)
    {
        return wait_for(comm, label, since, peer, steps);
    }

    Step finish()
    {
        no_longer_waits(comm);
        return Step::done;
    }
};

struct Collective : Operation {
    size_t element, per, n_steps; /* bytes of an element; elements a step (of each rank's part); steps */
    uint64_t base;                /* steps of the communicator before this operation */
    size_t step = 0;
    bool published = false;

    Collective(const Comm &c, const Task &t) : Operation(c, t)
    {
        number = comm->collectives++;
        label = show(call) + " (collective " + std::to_string(number) + ")";
        element = type_bytes(task.type);
        per = SLOT_BYTES / element / static_cast<size_t>(task.kind == Kind::reduce_scatter ? comm->size : 1);
        n_steps = (task.count + per - 1) / per;
        base = comm->steps;
        comm->steps += n_steps;
        steps = comm->steps;
        comm->shared->calls[comm->rank][number % RING] = call;
        comm->shared->issued[comm->rank] = number + 1;
    }

    /* A rank that has issued another call in this place, or -1. */
    int other() const
    {
        for (int r = 0; r < comm->size; r++) {
            uint64_t issued = comm->shared->issued[r];
            if (issued > number && issued - number < RING && !same(comm->shared->calls[r][number % RING], call)) {
                return r;
            }
        }
        return -1;
    }

    Step differs(int peer)
    {
        return mismatch("collective", peer, comm->shared->calls[peer][number % RING]);
    }

    size_t elements() const
    {
        return std::min(task.count - step * per, per);
    }

    void publish()
    {
        char *slot = comm->shared->slot[comm->rank];
        size_t at = step * per, n = elements() * element;
        if (task.kind == Kind::reduce_scatter) {
            for (size_t r = 0; r < static_cast<size_t>(comm->size); r++) {
                memcpy(slot + r * per * element, task.src + (r * task.count + at) * element, n);
            }
        } else if (task.kind != Kind::broadcast || comm->rank == task.peer) {
            memcpy(slot, task.src + at * element, n);
        }
        comm->shared->published[comm->rank] = base + step + 1;
        published = true;
        since = now();
    }

    void consume()
    {
        Shared *shared = comm->shared;
        size_t at = step * per, n = elements();
        bool scatters = task.kind == Kind::reduce_scatter;
        const char *src[MAX_RANKS];
        for (int r = 0; r < comm->size; r++) {
            src[r] = shared->slot[r] + (scatters ? static_cast<size_t>(comm->rank) * per * element : 0);
        }
        if (task.kind == Kind::all_gather) {
            for (size_t r = 0; r < static_cast<size_t>(comm->size); r++) {
                memcpy(task.dst + (r * task.count + at) * element, src[r], n * element);
            }
        } else if (task.kind == Kind::broadcast) {
            memcpy(task.dst + at * element, src[task.peer], n * element);
        } else if (task.kind != Kind::reduce || comm->rank == task.peer) {
            reduce(task.dst + at * element, src, comm->size, n, task.type, task.op);
        }
        shared->consumed[comm->rank] = base + step + 1;
    }

    Step run()
    {
        start();
        if (comm->error != ncclSuccess) {
            return wait(comm->rank);
        }
        if (int r = other(); r >= 0) {
            return differs(r);
        }
        for (; step < n_steps; step++, published = false) {
            uint64_t turn = base + step;
            for (int r = 0; !published && r < comm->size; r++) {
                if (comm->shared->consumed[r] < turn) {
                    return wait(r);
                }
            }
            if (!published) {
                publish();
            }
            for (int r = 0; r < comm->size; r++) {
                if (comm->shared->published[r] <= turn) {
                    return wait(r);
                }
            }
            if (int r = other(); step == 0 && r >= 0) { /* a rank may have come since the look above */
                return differs(r);
            }
            consume();
        }
        return finish();
    }
};

struct Message : Operation {
    Pipe *pipe;
    bool sends;
    Call *theirs;        /* the other side's calls */
    const Count *issued; /* how many of them */
    size_t bytes, done = 0;
    uint64_t begin = 0; /* place of the first byte in the pipe's stream */
    bool started = false;

    Message(const Comm &c, const Task &t) : Operation(c, t), sends(t.kind == Kind::send)
    {
        int from = sends ? comm->rank : task.peer, to = sends ? task.peer : comm->rank;
        pipe = &comm->shared->pipe[from][to];
        number = sends ? comm->sends[to]++ : comm->recvs[from]++;
        label = show(call) + " (message " + std::to_string(number) + ")";
        bytes = task.count * type_bytes(task.type);
        Call *mine = &pipe->send[0];
        theirs = &pipe->recv[0];
        issued = &pipe->recvs;
        if (!sends) {
            std::swap(mine, theirs);
            issued = &pipe->sends;
        }
        mine[number % RING] = call;
        Count &my_issued = sends ? pipe->sends : pipe->recvs;
        my_issued = number + 1;
    }

    void write()
    {
        while (done < bytes && pipe->written - pipe->read < PIPE_BYTES) {
            size_t at = pipe->written % PIPE_BYTES, room = PIPE_BYTES - (pipe->written - pipe->read);
            size_t n = std::min({bytes - done, room, PIPE_BYTES - at});
            memcpy(pipe->data + at, task.src + done, n);
            done += n;
            pipe->written += n;
        }
    }

    void read()
    {
        while (done < bytes && pipe->written > pipe->read) {
            size_t at = pipe->read % PIPE_BYTES, there = pipe->written - pipe->read;
            size_t n = std::min({bytes - done, there, PIPE_BYTES - at});
            memcpy(task.dst + done, pipe->data + at, n);
            done += n;
            pipe->read += n;
        }
    }

    Step run()
    {
        start();
        if (comm->error != ncclSuccess) {
            return wait(task.peer);
        }
        if (*issued <= number) {
            return wait(task.peer);
        }
        uint64_t &turn = sends ? comm->sent[task.peer] : comm->received[task.peer];
        if (!started) {
            const Call &other = theirs[number % RING];
            if (other.count != call.count || other.type != call.type) {
                return mismatch("message", task.peer, other);
            }
            if (turn != number) { /* an earlier message of the same group is still in the pipe */
                return wait(task.peer);
            }
            started = true;
            begin = sends ? pipe->written : pipe->read;
        }
        if (size_t before = done; done < bytes) {
            sends ? write() : read();
            since = done > before ? now() : since;
        }
        if (done == bytes && turn == number) {
            turn = number + 1;
        }
        bool complete = done == bytes && (!sends || pipe->read >= begin + bytes);
        return complete ? finish() : wait(task.peer);
    }
};

/* The tasks of one group on one communicator: its messages go on together, its collectives one after the other. */
struct Group {
    Comm comm;
    std::vector<std::unique_ptr<Message>> messages;
    std::vector<std::unique_ptr<Collective>> collectives;
    size_t next = 0;

    Step run()
    {
        if (comm->aborted) {
            return Step::done;
        }
        for (auto &message : messages) {
            if (message && message->run() == Step::done) {
                message.reset();
            }
        }
        while (next < collectives.size() && collectives[next]->run() == Step::done) {
            next++;
        }
        bool complete = next == collectives.size();
        for (auto &message : messages) {
            complete = complete && !message;
        }
        return complete ? Step::done : Step::pending;
    }
};

Run make_work(const Comm &comm, const std::vector<Task> &tasks)
{
    auto group = std::make_shared<Group>();
    group->comm = comm;
    for (const Task &task : tasks) {
        if (task.kind == Kind::send || task.kind == Kind::recv) {
            group->messages.push_back(std::make_unique<Message>(comm, task));
        } else {
            group->collectives.push_back(std::make_unique<Collective>(comm, task));
        }
    }
    return [group] { return group->run(); };
}

} // namespace standin::nccl
