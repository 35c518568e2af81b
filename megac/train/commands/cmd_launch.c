/* megac launch: ranks on this machine without MPI. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/train/commands/commands.h"
#include "megac/train/commands/launch.h"

/* Where the ranks' own command line begins: after "--", or at the name of a command. argc: nowhere. */
static int find_command(int argc, char **argv)
{
    static const char *const names[] = {
#define MT_COMMAND(name, summary) #name,
#include "megac/train/commands/commands.def"
#undef MT_COMMAND
    };
    for (int i = 0; i < argc; i++) {
        for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
            if (strcmp(argv[i], "--") == 0 || strcmp(argv[i], names[k]) == 0) {
                return i;
            }
        }
    }
    return argc;
}

/* A port of this machine alone, held until rank 0 has it. */
static mc_status choose_port(mt_launch *l)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    l->master_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (l->master_fd < 0 || bind(l->master_fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        listen(l->master_fd, SOMAXCONN) != 0 || getsockname(l->master_fd, (struct sockaddr *)&a, &n) != 0) {
        return MC_FAIL(MC_UNSUPPORTED, "no port of 127.0.0.1 can be opened: %s; is the loopback interface up?",
                       strerror(errno));
    }
    l->master_addr = "127.0.0.1";
    l->master_port = ntohs(a.sin_port);
    return MC_OK;
}

static mc_status check_master(const mt_launch_options *o)
{
    if (o->node_rank >= o->nnodes) {
        return MC_FAIL(MC_INVALID, "--node-rank %lld of --nnodes %lld: they count from 0", (long long)o->node_rank,
                       (long long)o->nnodes);
    }
    if ((o->nnodes > 1 || o->master_addr || mc_given_int(o->master_port)) &&
        (!o->master_addr || !mc_given_int(o->master_port))) {
        return MC_FAIL(MC_INVALID,
                       "%s is missing; with more than one machine, or when one of the two is given, give "
                       "--master-addr and --master-port",
                       o->master_addr ? "--master-port" : "--master-addr");
    }
    return MC_OK;
}

static mc_status launch(const mt_launch_options *o, int argc, char **argv)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    mt_launch l = {
        .program = o->program ? o->program : self,
        .n_local = (int)o->nproc_per_node,
        .n_nodes = (int)o->nnodes,
        .node_rank = (int)o->node_rank,
        .master_addr = o->master_addr,
        .master_port = (int)o->master_port,
        .master_fd = -1,
    };
    MC_TRY(check_master(o));
    MC_TRY(MC_NEW_N(&l.argv, argc + 2, "arguments of the ranks"));
    l.argv[0] = (char *)(uintptr_t)l.program;
    memcpy(l.argv + 1, argv, (size_t)argc * sizeof *argv);
    mc_status st = o->master_addr ? MC_OK : choose_port(&l);
    if (st == MC_OK) {
        st = mt_launch_run(&l);
    } else if (l.master_fd >= 0) {
        close(l.master_fd);
    }
    mc_free(l.argv);
    return st;
}

mc_status mt_cmd_launch(const mc_job *job, int argc, char **argv)
{
    mt_launch_options *o;
    bool done;
    (void)job;
    int at = find_command(argc, argv), first = at < argc && strcmp(argv[at], "--") == 0 ? at + 1 : at;
    MC_TRY(mt_launch_options_parse(at, argv, &o, &done));
    if (done) {
        return MC_OK;
    }
    mc_status st = first < argc || o->program
                       ? launch(o, argc - first, argv + first)
                       : MC_FAIL(MC_INVALID, "nothing to launch; usage: megac launch -n RANKS -- train [FLAGS]");
    mt_launch_options_free(o);
    return st;
}
