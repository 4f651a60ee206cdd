// Package preheat runs jobs that bring content into the cluster before it is
// asked for.
//
// A job names an image or a file and a scope: the supernode's cache, or nodes
// as well. What a Manager guarantees:
//
//   - A job is on disk before Submit returns, and unfinished jobs go on after a
//     restart of the supernode.
//   - What a job reports is what is held: bytes at the supernode count once
//     they may be served, and content is complete only after its digest has
//     matched; bytes at a node count once the node has announced them. A node
//     that says it is done without having announced all of the content is not
//     taken for done.
//   - One content or one node that fails does not end a job. It is reported,
//     by name and with the reason, and so is the job: see State.
//   - A job ends when the last of its content has come to an end; reports are
//     at most half a second behind.
//   - Credentials stay in memory while their job runs. They are neither stored
//     nor reported, nor given to nodes, which read from the swarm. A job that
//     needs them and is interrupted by a restart goes on with the supernode's
//     own credentials; if the origin then refuses, the job fails and says why.
//     The same holds for secrets in a URL's query.
//
// What it does not: content may be evicted once its job is finished; a job
// chooses its nodes when it is submitted, nodes that join later get nothing;
// there is no order among jobs beyond that of their start.
//
// The owner of a job's progress is one goroutine per job. Fetching happens in
// others, which tell it what they found.
package preheat
