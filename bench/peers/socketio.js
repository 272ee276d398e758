// Socket.IO as in its documentation: JWT in a middleware, a Redis adapter, WebSocket only.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createAdapter as createStreamsAdapter } from "@socket.io/redis-streams-adapter";
import jwt from "jsonwebtoken";
import { createClient } from "redis";
import { Server } from "socket.io";

const { BENCH_PORT, BENCH_REDIS, BENCH_KEY, BENCH_ADAPTER } = process.env;

const client = createClient({ socket: { path: BENCH_REDIS } });
client.on("error", console.error);
await client.connect();

const options = { transports: ["websocket"], serveClient: false };
if (BENCH_ADAPTER === "streams") {
  options.adapter = createStreamsAdapter(client);
  options.connectionStateRecovery = {};
} else {
  const subscriber = client.duplicate();
  subscriber.on("error", console.error);
  await subscriber.connect();
  options.adapter = createAdapter(client, subscriber);
}

const http = createServer();
const io = new Server(http, options);

io.use((socket, next) => {
  try {
    socket.data.user = jwt.verify(socket.handshake.auth.token, BENCH_KEY, { algorithms: ["HS256"] });
    next();
  } catch (error) {
    next(error);
  }
});

io.on("connection", (socket) => {
  const { user_id, name, threads, groups = [] } = socket.data.user;
  const teams = groups.map((group) => `presence:${group}`);
  socket.join([`user:${user_id}`, ...teams]);

  socket.on("join", ({ thread_id }, answer) => {
    if (!threads.includes(thread_id)) return answer({ error: "forbidden" });
    socket.join(`thread:${thread_id}`);
    answer({ status: "ok" });
  });

  socket.on("typing", ({ thread_id, typing }) => {
    const room = `thread:${thread_id}`;
    if (!socket.rooms.has(room)) return;
    socket.to(room).emit("thread:typing", { thread_id, user_id, name, typing });
  });

  socket.on("presence", ({ status }) => {
    if (teams.length) io.to(teams).emit(`attendant:${status}`, { user_id, name, status });
  });
});

http.listen(Number(BENCH_PORT), "127.0.0.1", () => console.log("ready"));
process.on("SIGTERM", () => process.exit(0));
