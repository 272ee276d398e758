// What Jest 29 runs without any configuration.
const { Socket } = require("realtime-sockets");
const hooks = require("realtime-sockets/react");

test("Jest finds the core and the hooks", () => {
  const socket = new Socket({ url: "wss://example.com/hub/", getToken: () => "token", autoConnect: false, WebSocket: class {} });
  expect(socket.status).toBe("stopped");
  expect(Object.keys(hooks)).toContain("useSocket");
});
