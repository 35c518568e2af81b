/* argv to command; exit status. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "megac/base/log.h"
#include "megac/train/commands/commands.h"

static const struct {
    const char *name, *summary;
    mc_status (*run)(const mc_job *job, int argc, char **argv);
} commands[] = {
#define MT_COMMAND(name, summary) {#name, summary, mt_cmd_##name},
#include "megac/train/commands/commands.def"
#undef MT_COMMAND
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out)
{
    fprintf(out, "megac: pre-trains GPT and Llama models with tensor, pipeline and data parallelism\n\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        fprintf(out, "  megac %-9s %s\n", commands[i].name, commands[i].summary);
    }
    fprintf(
        out,
        "\n`megac COMMAND --help` lists the flags of a command. Exit status: 0 finished; 2 bad flags or input, nothing "
        "started;\n75 stopped early after saving; 1 any other failure.\n");
}

static mc_status dispatch(const mc_job *job, int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return MC_INVALID;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return MC_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("megac %s\n", MEGAC_VERSION);
        return MC_OK;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(job, argc - 2, argv + 2);
        }
    }
    return MC_FAIL(MC_INVALID, "unknown command \"%s\"; `megac --help` lists the commands", argv[1]);
}

int main(int argc, char **argv)
{
    mc_job job = {0};
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a write error that is reported, not a death */
    mc_status st = mc_job_from_env(&job);
    if (st == MC_OK) {
        mc_log_set_rank(job.size > 1 ? job.rank : -1);
        mc_log_hold(true);
        st = dispatch(&job, argc, argv);
    }
    if (st == MC_OK && (fflush(stdout) != 0 || ferror(stdout))) {
        st = MC_FAIL(MC_IO, "standard output could not be written");
    }
    if (st != MC_OK && st != MC_STOPPED) {
        mt_let_rank_0_speak(job.rank);
    }
    return mc_status_exit(st);
}
