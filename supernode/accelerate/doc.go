// Package accelerate makes images lazy without anybody building them anew: it
// converts images from the supernode's own cache, signs their indexes with the
// supernode's key, and adds them to what the registry says.
//
// What an Accelerator guarantees:
//
//   - The layers of an image are read through the cache, and so at most once
//     from the registry, however the conversion goes and whoever else pulls.
//   - An index is offered while everything that it needs is complete in the
//     cache: after a restart too, also with the registry down, and not any more
//     once the cache has dropped some of it. Blobs go by the rules of the cache,
//     least recently used first; those of one image count as used together.
//   - What is offered goes only to clients whose own credential the registry
//     accepts for the image itself, its manifest in the same repository. A
//     registry that cannot be asked lets nobody in.
//   - The registry's own word stays: what it lists is listed, and a tag that it
//     has is answered as it has it.
//   - A conversion that fails, or dies with the process, leaves nothing behind.
//     At most Options.Workers run at a time, with Options.Memory each.
//
// What it does not: it forces nobody to trust its key (package trust decides,
// on each node), and it does not convert again when an index was dropped, unless
// it is asked to or the image is pulled from a listed repository.
//
// While an image is converted its blobs need room twice: in the cache and below
// Options.Dir. Credentials stay in memory until their conversion has ended.
package accelerate
