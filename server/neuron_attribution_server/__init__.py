"""The server of the neuron attribution service: two wings, and the hall between them.

`front_end/` takes calls, without torch. `model/` answers them in processes of its own, without gRPC. `tasks/` is what
passes between them, `settings/` how a process is set up; both know neither wing. `corpus/` has both wings in one
process.
The modules that lie here put it all together: they may import everything, and nothing imports them.
"""
