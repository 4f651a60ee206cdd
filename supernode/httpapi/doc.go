// Package httpapi is the supernode's management API over HTTP, described in
// api/openapi.yaml: preheat jobs, nodes and tasks, and the two forms in which
// Harbor's preheat providers ask for jobs.
//
// Who may use it: with a token, whoever sends it, as "Authorization: Bearer
// TOKEN" or as the password of Basic authentication. Without one, clients on
// this machine only; since a browser on this machine is such a client too,
// requests then must name the supernode by address or as localhost, must not
// come from another web site, and must not have come through a proxy. The
// health checks of Harbor's providers, /healthy and /health, need nothing.
//
// A request with a body must be JSON, by its Content-Type as well, and at most
// 1 MiB long. In /api/v1 a field that is not known is refused by name; the
// forms of others are read as leniently as they are written there.
//
// Every error is {"error": {"code": …, "message": …}}, with a code that
// programs can rely on and a message that says what to do. Credentials in a
// request are handed to package preheat and appear in no answer and no log.
package httpapi
